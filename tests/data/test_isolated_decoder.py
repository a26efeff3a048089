"""Decoding in processes of their own gives what decoding here gives, and whatever a file does to them stays there."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import Encoder

import alpro_hf
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode, probe, read_comment
from alpro_hf.model.decoding_types import (
    DecoderFailedError,
    NotAVideoError,
    TruncatedVideoError,
    VideoLimits,
    VideoTooLargeError,
)
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(processes=2, deadline=60) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def clip(encode: Encoder) -> Path:
    return encode("isolated.mp4", num_frames=24)


def pids(decoder: IsolatedDecoder) -> list[int]:
    return [worker.process.pid for worker in decoder._idle]


def test_gives_what_decoding_here_gives(decoder, clip, monkeypatch) -> None:
    data = clip.read_bytes()
    with clip.open("rb") as file:
        file.seek(100)
        for source in (clip, str(clip), data, memoryview(data), file):
            for indices in (None, [3, 0, 3], lambda info: [info.num_frames - 1]):
                ours = decoder.decode(source, indices, height=30, width=40)
                here = decode(source, indices, height=30, width=40)
                assert torch.equal(ours.pixels, here.pixels)
                assert ours.pixels.is_contiguous()
                assert (ours.indices, ours.timestamps, ours.info) == (here.indices, here.timestamps, here.info)
            assert decoder.probe(source) == probe(source)
            assert decoder.comment(source) == read_comment(source) == probe(source).comment
    monkeypatch.chdir(clip.parent)  # the processes have started elsewhere
    assert decoder.probe(clip.name) == probe(clip.name)


def test_nothing_is_imported_from_the_working_folder(clip, tmp_path, monkeypatch) -> None:
    for name in ("runpy", "json", "importlib", "numpy", "av", "decoding", "fractions"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'taken')!r}, 'w').write({name!r})")
    monkeypatch.chdir(tmp_path)
    with IsolatedDecoder(processes=1) as decoder:
        assert len(decoder.decode(clip, [0, 5]).pixels) == 2
    assert not (tmp_path / "taken").exists()


def test_errors_are_those_of_decoding_here(decoder, clip, tmp_path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("only words " * 100)
    half = tmp_path / "half\udcff.mp4"  # a name that is no text
    half.write_bytes(clip.read_bytes()[:-700])
    decoder.probe(clip)
    before = pids(decoder)
    for kind, source in ((NotAVideoError, text), (TruncatedVideoError, half), (NotAVideoError, b"xyz")):
        with pytest.raises(kind) as ours:
            decoder.decode(source)
        with pytest.raises(kind) as here:
            decode(source)
        assert str(ours.value) == str(here.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        decoder.decode(tmp_path / "nowhere.mp4")
    with pytest.raises(IsADirectoryError):
        decoder.decode(tmp_path)
    with pytest.raises(VideoTooLargeError, match="number of pixels"):
        decoder.decode(clip, limits=VideoLimits(max_pixels=100))
    assert pids(decoder) == before  # none of this costs a process
    with pytest.raises(IndexError, match="the last frame is 23"):
        decoder.decode(clip, [24])
    with pytest.raises(TypeError, match="not int"):
        decoder.decode(7)
    assert len(decoder.decode(clip, [0]).pixels) == 1


def test_a_hang_ends_at_the_deadline_and_costs_one_file(tmp_path, clip) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer for ever
    with IsolatedDecoder(processes=1, deadline=2) as decoder:
        start = time.monotonic()
        with pytest.raises(DecoderFailedError, match=r"pipe\.mp4: decoding it took longer than 2 seconds"):
            decoder.decode(tmp_path / "pipe.mp4")
        assert time.monotonic() - start < 30
        assert len(decoder.decode(clip).pixels) == 24


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_crash_costs_one_file(tmp_path, clip, name) -> None:
    """As when the kernel ends the process, or FFmpeg writes where it must not."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with IsolatedDecoder(processes=1, deadline=60) as decoder:
        decoder.probe(clip)
        [victim] = pids(decoder)
        threading.Timer(0.3, os.kill, (victim, getattr(signal, name))).start()
        with pytest.raises(DecoderFailedError, match=rf"pipe\.mp4: decoding it ended the decoder \({name}"):
            decoder.decode(tmp_path / "pipe.mp4")
        assert len(decoder.decode(clip).pixels) == 24
        assert pids(decoder) != [victim]


CALLER = """
import sys
import threading
from alpro_hf.data.isolated_decoder import IsolatedDecoder

decoder = IsolatedDecoder(processes=2, deadline=300)
workers = [decoder._take() for _ in range(2)]
print(*[worker.process.pid for worker in workers], flush=True)
for worker in workers:
    decoder._put_back(worker)
for path in sys.argv[1:]:
    arguments = (path, lambda info: [info.num_frames - 1])
    threading.Thread(target=decoder.decode, args=arguments, kwargs={"height": 16, "width": 16}).start()
"""


@pytest.mark.slow
def test_processes_at_work_do_not_outlive_a_caller_that_is_killed(tmp_path) -> None:
    waiting, working = tmp_path / "pipe.avi", tmp_path / "long.avi"
    os.mkfifo(waiting)
    decodes_for_a_minute(working)
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    command = [sys.executable, "-c", CALLER, str(waiting), str(working)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        workers = [int(pid) for pid in caller.stdout.readline().split()]
        time.sleep(5)
        assert [is_alive(pid) for pid in workers] == [True, True]
        assert caller.poll() is None
        caller.kill()
    start = time.monotonic()
    while any(map(is_alive, workers)) and time.monotonic() - start < 20:
        time.sleep(0.05)
    assert [is_alive(pid) for pid in workers] == [False, False]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a stopped process together with its caller")
def test_stopped_processes_do_not_outlive_a_caller_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    command = [sys.executable, "-c", CALLER + "\nimport time; time.sleep(300)"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        workers = [int(pid) for pid in caller.stdout.readline().split()]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        assert [is_alive(pid) for pid in workers] == [True, True]
        caller.kill()
    start = time.monotonic()
    while any(map(is_alive, workers)) and time.monotonic() - start < 20:
        time.sleep(0.05)
    alive = [pid for pid in workers if is_alive(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def test_a_process_outlives_the_thread_that_first_used_it(clip) -> None:
    with IsolatedDecoder(processes=1) as decoder:
        thread = threading.Thread(target=decoder.probe, args=(clip,))
        thread.start()
        thread.join()
        own = pids(decoder)
        time.sleep(0.5)
        assert len(decoder.decode(clip).pixels) == 24 and pids(decoder) == own
        os.kill(own[0], signal.SIGKILL)  # while it waits for work
        decoder._idle[0].process.wait()
        assert len(decoder.decode(clip).pixels) == 24 and pids(decoder) != own


def decodes_for_a_minute(path: Path) -> None:
    """A few MB: one black picture of 4000 x 4000, 800 times, in a container without an index to seek by."""
    with av.open(str(path), "w", format="avi") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 4000, 4000, "gray"
        picture = av.VideoFrame.from_ndarray(np.zeros((4000, 4000), np.uint8), format="gray")
        [encoded] = [*stream.encode(picture), *stream.encode()]
        for number in range(800):
            packet = av.Packet(bytes(encoded))
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = encoded.time_base
            output.mux(packet)


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it is more than an exit status that nobody has read."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_memory_is_bounded(clip) -> None:
    with IsolatedDecoder(processes=1, max_memory=256 * 1024**2) as decoder:
        with pytest.raises(VideoTooLargeError, match="268,435,456 bytes of memory"):
            decoder.decode(clip, height=4000, width=4000)
        assert len(decoder.decode(clip).pixels) == 24


def test_close_ends_all_processes_and_lets_go_of_those_who_wait(tmp_path, clip) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    decoder = IsolatedDecoder(processes=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(decoder.decode, tmp_path / "pipe.mp4") for _ in range(2)]
        while len(decoder._busy) < 2:
            time.sleep(0.01)
        started = [worker.process for worker in decoder._busy]
        decoder.close()
        for future in waiting:
            with pytest.raises(DecoderFailedError):
                future.result()
    assert all(process.poll() is not None for process in started)
    assert len(decoder.decode(clip).pixels) == 24  # as new
    decoder.close()


def test_many_threads_share_it(decoder, clip) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: decoder.decode(clip, [i]).indices, range(24)))
    assert found == [[i] for i in range(24)]
    assert 1 <= len(pids(decoder)) <= 2


def test_copies_and_forks(decoder, clip) -> None:
    decoder.probe(clip)
    assert copy.deepcopy(decoder.decode).__self__ is decoder  # processors copy their arguments
    other = pickle.loads(pickle.dumps(decoder))
    assert (other.processes, other.deadline, other.max_memory) == (2, 60, 4 * 1024**3)
    own = pids(decoder)
    child = os.fork()
    if not child:  # a data loading process
        good = len(decoder.decode(clip).pixels) == 24 and not set(pids(decoder)) & set(own)
        decoder.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(decoder.decode(clip).pixels) == 24 and set(own) <= set(pids(decoder))


def test_a_processor_takes_it(decoder, clip) -> None:
    processor = AlproVideoProcessor(num_frames=4, size={"height": 32, "width": 32})
    asked = []

    def spying(*args, **kwargs):
        asked.append(kwargs)
        return decoder.decode(*args, **kwargs)

    pixels = processor(clip, decoder=spying)["pixel_values_videos"]
    assert torch.equal(pixels, processor(clip)["pixel_values_videos"])
    assert [(call["height"], call["width"]) for call in asked] == [(32, 32)]
    with pytest.raises(ValueError, match="decoder belongs to the call"):
        AlproVideoProcessor(decoder=decoder.decode)


def test_wrong_numbers_are_named() -> None:
    for arguments in ({"processes": 0}, {"deadline": 0}, {"max_memory": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            IsolatedDecoder(**arguments)
