"""The package as a whole: a light import, registration with the Auto classes, and files that may travel alone."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import network
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering

import alpro_hf
from alpro_hf import AlproConfig, AlproForVideoQuestionAnswering, AlproModel, AlproVideoConfig, AlproVideoModel

SOURCE = Path(alpro_hf.__file__).parent
# the files that go to a Hub repository beside the weights, and what they may import
TRAVELLING = sorted(path.name for path in (SOURCE / "model").glob("*.py"))
ALLOWED = {"torch", "torchvision", "transformers", "huggingface_hub", "av", "numpy", "PIL"}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_import_brings_nothing_optional_builds_nothing_and_asks_nobody() -> None:
    code = """
import json, sys
asked = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and asked.append(event))
import alpro_hf
print(json.dumps([sorted(sys.modules), alpro_hf.__version__, asked]))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules, version, asked = json.loads(output)
    assert asked == []
    loaded = {name.split(".")[0] for name in modules}
    assert not loaded & {"gradio", "spacy", "evaluate", "datasets", "matplotlib", "hypothesis", "pytest"}
    assert not {name for name in modules if name.startswith("alpro_hf.data") or name.startswith("alpro_hf.training")}
    assert version == alpro_hf.__version__


def test_models_load_and_the_demo_runs_where_there_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto'):\n"
        "        open(__file__ + '.asked', 'a').write(f'{event} {args}')\n"
        "sys.addaudithook(refuse)\n"
    )
    code = """
from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, bundled_model
from alpro_hf.cli.main import main
for cls in (AlproForVideoTextRetrieval, AlproProcessor):
    cls.from_pretrained(bundled_model("retrieval"))
raise SystemExit(main(["demo", "--output", "demo", "--clips", "4"]))
"""
    path = os.pathsep.join((str(tmp_path), *filter(None, (os.environ.get("PYTHONPATH"),))))
    # its own network, which has not even a loopback; a system that knows no such thing is left with the hook
    alone = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"]).returncode:
        alone = []
    ran = subprocess.run(
        [*alone, sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "The whole gallery" in ran.stdout
    assert not (tmp_path / "sitecustomize.py.asked").exists(), (tmp_path / "sitecustomize.py.asked").read_text()


def test_no_test_so_far_tried_to_reach_another_machine() -> None:
    assert network.REACHED == []
    with socket.socket() as one, pytest.raises(ConnectionRefusedError, match="another machine"):
        one.connect(("192.0.2.1", 80))
    network.REACHED.clear()


def test_every_public_name_exists() -> None:
    for name in alpro_hf.__all__:
        assert getattr(alpro_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'AlproNothing'"):
        alpro_hf.AlproNothing  # noqa: B018


@pytest.mark.parametrize("name", TRAVELLING)
def test_files_that_travel_import_only_each_other_and_what_users_have(name: str) -> None:
    for node in ast.walk(ast.parse((SOURCE / "model" / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert f"{node.module}.py" in TRAVELLING
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in names:
                assert module.split(".")[0] in ALLOWED | set(sys.stdlib_module_names), f"{name} imports {module}"


def test_auto_classes_know_checkpoints(tmp_path: Path) -> None:
    config = AlproConfig(
        text_config={**TINY, "vocab_size": 32, "fusion_layer": 1}, video_config={**TINY, "image_size": 32}
    )
    AlproForVideoQuestionAnswering(config).save_pretrained(tmp_path / "qa")
    AlproVideoModel(AlproVideoConfig(**TINY, image_size=32)).save_pretrained(tmp_path / "video")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "qa"), AlproConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "qa"), AlproModel)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "video"), AlproVideoModel)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "qa")
    assert isinstance(loaded, AlproForVideoQuestionAnswering)
