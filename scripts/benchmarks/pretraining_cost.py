"""Estimate the cost of pre-training at the scale of the paper: devices, hours, memory and storage.

    python scripts/benchmarks/pretraining_cost.py

The script builds the model of the paper. `torch.utils.flop_counter` counts the operations of one row: forward and
backward of all four losses, and forward of the teacher. The script times the same step and the preparation of clips of
web-video size. It adds up the bytes that autograd keeps for the backward pass. From these it calculates the cost of
the whole training. The script cannot measure accelerators or the files of a data set. Their speed, utilisation and
sizes are options, and the output names them next to the results.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from alpro_hf import AlproConfig, AlproForPreTraining, AlproProcessor, AlproPrompterModel, AlproVideoProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.augmentation import AlproAugmentation
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.sprites.render import write_split

STEPS, BATCH, PAIRS, CLIPS, IMAGES = 100_000, 256, 5_500_000, 2_500_000, 3_000_000  # paper, section 4.1
FRAMES, LENGTH, ENTITIES = 4, 30, 1000
SECONDS, HEIGHT, RATE = 18, 336, 25  # a clip of web video


def batch_of(rows: int, config: AlproConfig) -> dict[str, torch.Tensor]:
    """Random inputs of a pre-training step, with the shapes of the paper."""
    size, vocabulary = config.video_config.image_size, config.text_config.vocab_size
    grid = size // config.video_config.patch_size
    words = torch.randint(vocabulary, (rows, LENGTH))
    labels = torch.where(torch.rand(rows, LENGTH) < 0.15, words, -100)
    crop = torch.zeros(rows, grid, grid, dtype=torch.bool)
    crop[:, : grid // 2, : grid // 2 + 1] = True
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values_videos": torch.randn(rows, FRAMES, 3, size, size),
        "mlm_input_ids": words,
        "mlm_labels": labels,
        "crop_mask": crop,
        "pem_targets": torch.rand(rows, ENTITIES).softmax(dim=1),
    }


def counted(work: Callable[[], Any]) -> tuple[float, float]:
    """Operations (a multiplication and an addition are two) and CPU seconds, summed over all threads."""
    started = time.process_time()
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()), time.process_time() - started


def kept_for_backward(model: AlproForPreTraining, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass: each storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # else the graph would keep itself alive through this function
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed storage could pass its address on to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch, return_loss=True).loss
    assert loss.requires_grad
    return sum(storages.values())


def student_cost(config: AlproConfig, batch: dict[str, torch.Tensor]) -> tuple[int, float, float, dict[str, float]]:
    """Parameters; operations and CPU seconds of a step; bytes per row for the backward pass, by kind of attention."""
    model = AlproForPreTraining(config).train()
    model.set_attn_implementation("eager")  # the counter knows its products on every device

    def step() -> None:
        model(**batch, return_loss=True).loss.backward()
        model.zero_grad()

    operations, seconds = counted(step)
    kept = {}
    for way in ("eager", "sdpa", "sdpa, gradient checkpointing"):
        model.set_attn_implementation(way.partition(",")[0])
        if "checkpointing" in way:
            model.activation_checkpointing_enable()
        kept[way] = kept_for_backward(model, batch) / len(batch["input_ids"])
    return sum(parameter.numel() for parameter in model.parameters()), operations, seconds, kept


def teacher_cost(config: AlproConfig, batch: dict[str, torch.Tensor]) -> tuple[int, float, float]:
    """Parameters; operations and CPU seconds of the pseudo-labels for a batch."""
    teacher = AlproPrompterModel(config).eval()
    teacher.set_attn_implementation("eager")
    teacher.video_prompt_embeds.normal_()
    operations, seconds = counted(lambda: teacher.pseudo_labels(batch["pixel_values_videos"]))
    return sum(parameter.numel() for parameter in teacher.parameters()), operations, seconds


def matrix_speed() -> float:
    """Operations per CPU second of a large matrix product."""
    first, second = torch.randn(2048, 768), torch.randn(768, 3072)
    for _ in range(3):
        first @ second
    started = time.process_time()
    for _ in range(10):
        first @ second
    return 10 * 2 * 2048 * 768 * 3072 / (time.process_time() - started)


def clip_seconds(folder: Path, clips: int) -> tuple[float, float]:
    """CPU seconds to prepare a clip of web-video size for training, and the bytes of its file."""
    written = write_split(folder, "train", clips, 0, size=HEIGHT, num_frames=SECONDS * RATE, fps=RATE, workers=1)
    processor = AlproProcessor(
        video_processor=AlproVideoProcessor(size={"height": 224, "width": 224}, num_frames=FRAMES),
        tokenizer=AlproProcessor.from_pretrained(bundled_model("retrieval")).tokenizer,
    )
    collator = AlproPreTrainingCollator(processor, video_augmentation=AlproAugmentation("video", 224))
    files = sorted((written / "clips").glob("*.mp4"))
    rows = NumberedRows([{"video": str(file), "text": "a fox moves to the left"} for file in files], training=True)
    collator([rows[0]])  # warm-up
    started = time.process_time()
    for index in range(len(rows)):
        collator([rows[index]])
    return (time.process_time() - started) / len(rows), sum(file.stat().st_size for file in files) / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2, help="rows of the measured step (default: 2)")
    parser.add_argument("--clips", type=int, default=8, help="clips to prepare (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--tflops",
        type=float,
        nargs="+",
        default=[312, 989],
        help="peaks of a device in dense bfloat16 (default: 312 989)",
    )
    parser.add_argument(
        "--use",
        type=float,
        nargs="+",
        default=[0.2, 0.4],
        help="shares of the peak that training reaches (default: 0.2 0.4)",
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16], help="numbers of devices (default: 8 16)")
    parser.add_argument("--clip-mb", type=float, default=1.0, help="megabytes of a stored clip (default: 1)")
    parser.add_argument("--image-kb", type=float, default=60.0, help="kilobytes of a stored image (default: 60)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    config = AlproConfig(entities=[f"entity {i}" for i in range(ENTITIES)])
    config.video_config.num_frames = FRAMES
    batch = batch_of(arguments.rows, config)
    parameters, operations, seconds, kept = student_cost(config, batch)
    of_teacher, taught, teacher_seconds = teacher_cost(config, batch)
    speed = matrix_speed()
    with tempfile.TemporaryDirectory() as folder:
        preparing, size = clip_seconds(Path(folder), arguments.clips)

    row = (operations + taught) / arguments.rows
    total = row * STEPS * BATCH
    print(f"parameters of the student: {parameters / 1e6:.1f} million")
    print(f"student, one row: {operations / arguments.rows / 1e12:.2f} TFLOP forward and backward")
    print(f"teacher, one row: {taught / arguments.rows / 1e12:.2f} TFLOP forward")
    print(f"measured with {arguments.threads} CPU threads, float32, {arguments.rows} rows:")
    print(f"student: {arguments.rows / seconds:.3f} rows per CPU second", end="; ")
    print(f"teacher: {arguments.rows / teacher_seconds:.3f} rows per CPU second")
    # a machine never reaches the peak of its data sheet, so the comparison is with a product of large matrices
    share = operations / seconds / speed
    print(f"student: {operations / seconds / 1e9:.0f} GFLOP/s, {share:.0%} of the speed of a large matrix product")
    print(f"all {STEPS:,} steps of {BATCH}: {total / 1e18:.0f} EFLOP; every pair {STEPS * BATCH / PAIRS:.1f} times")
    here = STEPS * BATCH * (seconds + teacher_seconds) / arguments.rows
    print(f"on one core of this machine: {here / 86400 / 365:.0f} years")
    print(
        "\nhours of pre-training, by peak of a device, share of the peak that training reaches, and number of devices"
    )
    print("| peak, TFLOP/s | reached | " + " | ".join(f"{devices} devices" for devices in arguments.devices) + " |")
    print("| --- | --- |" + " --- |" * len(arguments.devices))
    for peak in arguments.tflops:
        for use in arguments.use:
            hours = [total / (devices * peak * 1e12 * use) / 3600 for devices in arguments.devices]
            cells = " | ".join(f"{one:.0f} h" for one in hours)
            print(f"| {peak:g} | {use:.0%} | {cells} |")
    print("\nmemory of a device, float32 (autocast to bfloat16 halves most of the kept bytes)")
    print(
        f"weights, gradients and both moments of AdamW: {16 * parameters / 1e9:.1f} GB; "
        f"teacher: {4 * of_teacher / 1e9:.1f} GB"
    )
    for way, size_of_row in kept.items():
        print(f"kept for the backward pass, {way}: {size_of_row / 1e9:.2f} GB per row")
    print("\npreparing a clip")
    described = f"{SECONDS} s, {HEIGHT} px, {RATE} frames per second, {size / 1e3:.0f} kB"
    print(f"{described}: {1000 * preparing:.0f} ms of one core")
    clips = STEPS * BATCH / 2  # half of the steps are images
    print(f"all {clips / 1e6:.1f} million clips that training shows: {clips * preparing / 3600:.0f} core-hours")
    print("\nstorage")
    print(f"clips at {arguments.clip_mb:g} MB: {CLIPS * arguments.clip_mb / 1e6:.1f} TB")
    print(f"images at {arguments.image_kb:g} kB: {IMAGES * arguments.image_kb / 1e9:.2f} TB")
    print(f"pseudo-labels of one epoch, float32: {PAIRS * ENTITIES * 4 / 1e9:.0f} GB")
    print(f"a checkpoint for resuming: {12 * parameters / 1e9:.1f} GB; the model alone: {4 * parameters / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
