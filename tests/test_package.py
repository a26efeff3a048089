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
from fixtures.processes import environment
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering

import alpro_hf
from alpro_hf import AlproConfig, AlproForVideoQuestionAnswering, AlproModel, AlproVideoConfig, AlproVideoModel
from alpro_hf.hub.export import code_files

SOURCE = Path(alpro_hf.__file__).parent
# the files that go to a Hub repository beside the weights, and what they may import
TRAVELLING = [path.name for path in code_files()]
ALLOWED = {"torch", "torchvision", "transformers", "huggingface_hub", "av", "numpy", "PIL"}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.slow
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


# what transformers itself imports for the classes that ours derive from, and for the masks that they use
LIBRARY = """
import transformers.masking_utils
from transformers import AutoModel, AutoProcessor, BertTokenizer, Pipeline, PreTrainedModel, ProcessorMixin
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.video_processing_utils import BaseVideoProcessor
"""


@pytest.mark.slow
def test_import_brings_the_library_the_model_and_its_decoder_alone() -> None:
    """No trainer, no `datasets`; accelerate and torchvision only because transformers imports them."""
    code = f"{LIBRARY}import json, sys; before = set(sys.modules); import alpro_hf; "
    code += "print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))"
    before, new = json.loads(fresh(code))
    assert {name.split(".")[0] for name in new} - {name.split(".")[0] for name in before} <= {
        "alpro_hf",
        "av",
        *(name for name in new if name.startswith("_cython_")),  # of PyAV
    }
    assert not {"datasets", "transformers.trainer", "transformers.training_args"} & {*before, *new}
    own = {name for name in new if name.startswith("alpro_hf")}
    rooms = {f"alpro_hf.model.{Path(name).stem}" for name in TRAVELLING}
    assert own <= {"alpro_hf", "alpro_hf.model", "alpro_hf.registration", "alpro_hf.version", *rooms}


# Each import statement that a module of the package executes while it is imported, whether or not another module was
# faster: `sys.modules` alone would say who came first.
RECORDED = """
import builtins, importlib, json, pkgutil
found, plain = {}, builtins.__import__
def recording(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("alpro_hf"):
        if level:
            package = (globals or {})["__package__"].rsplit(".", level - 1)[0]
            name_found = f"{package}.{name}" if name else package
        else:
            name_found = name
        found.setdefault(importer, set()).update([name_found, *(f"{name_found}.{part}" for part in fromlist or ())])
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = recording
import alpro_hf
missing = {}
names = [module.name for module in pkgutil.walk_packages(alpro_hf.__path__, "alpro_hf.")]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing[name] = str(error)
print(json.dumps([names, missing, {name: sorted(imports) for name, imports in found.items()}]))
"""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module of the package -> names that it imports when it is imported, of every module there is."""
    names, missing, found = json.loads(fresh(RECORDED))
    files = {path.relative_to(SOURCE.parent).with_suffix("") for path in SOURCE.rglob("*.py")}
    # the metrics are programs that `evaluate` loads from their folders, not modules of the package
    modules = {".".join(path.parts) for path in files if path.name != "__init__" and "metrics" not in path.parts}
    assert modules <= set(names)
    assert all("pip install" in why for why in missing.values()) and set(missing) <= {"alpro_hf.evaluation.mteb"}
    return {name: set(found.get(name, ())) for name in ["alpro_hf", *names]}


def of(imports: dict[str, set[str]], library: str) -> set[str]:
    """Modules that import a library, or a name of it."""
    return {name for name, found in imports.items() if any(f"{one}.".startswith(f"{library}.") for one in found)}


@pytest.mark.slow
def test_modules_import_optional_packages_where_they_use_them(imports) -> None:
    assert {name.rpartition(".")[0] for name in of(imports, "gradio")} <= {"alpro_hf.page"}
    for package in ("spacy", "evaluate", "matplotlib", "faiss", "onnx", "onnxruntime", "onnxscript"):
        assert of(imports, package) == set(), package
    assert of(imports, "sentence_transformers") == set()
    assert of(imports, "mteb") <= {"alpro_hf.evaluation.mteb"}
    assert not {name for name, found in imports.items() if found & {"hypothesis", "pytest"}}


@pytest.mark.parametrize(
    ("library", "wings"),
    [
        ("datasets", {"data", "evaluation", "hub", "inference", "training"}),
        ("accelerate", {"evaluation", "inference", "training"}),
        ("torchvision", {"data"}),
        ("transformers.Trainer", {"training"}),
        ("transformers.TrainingArguments", {"training"}),
        ("transformers", {"data", "hub", "model", "registration", "training"}),
        ("torch", {"data", "evaluation", "hub", "inference", "model", "page", "sprites", "training"}),
        ("argparse", {"cli"}),
    ],
)
def test_heavy_libraries_are_imported_by_the_wings_that_use_them(imports, library, wings) -> None:
    assert {name.split(".")[1] for name in of(imports, library)} <= wings


def test_modules_below_the_wings_import_no_library(imports) -> None:
    for name in ("files", "version", "loading", "assets"):
        libraries = {one.split(".")[0] for one in imports[f"alpro_hf.{name}"]} - set(sys.stdlib_module_names)
        assert libraries <= {"alpro_hf"}, name


def fresh(code: str) -> str:
    """What a new process prints that runs the code."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import alpro_hf",
        "import transformers; import alpro_hf",
        "from transformers import AutoModel; AutoModel; import alpro_hf",
        "import alpro_hf.cli.main",
        "import alpro_hf_launch; import alpro_hf",  # as in processes that a command starts
    ],
)
def test_our_classes_are_registered_in_whatever_order_one_imports(first: str) -> None:
    code = f"""{first}
from transformers import AutoConfig, AutoModelForPreTraining, MODEL_MAPPING, PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("alpro")
print(MODEL_MAPPING[type(config)].__name__, PROCESSOR_MAPPING[type(config)].__name__)
print(*sorted(set(PIPELINE_REGISTRY.get_supported_tasks()) & {{"text-video-retrieval", "video-question-answering"}}))
"""
    assert fresh(code).splitlines() == ["AlproModel AlproProcessor", "text-video-retrieval video-question-answering"]


def test_the_console_script_starts_beside_the_package() -> None:
    """Importing what it starts must not import the package, which registers its classes."""
    project = (SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'alpro = "alpro_hf_launch:main"' in project
    assert '"src/alpro_hf_launch.py"' in project  # it is in the wheel
    assert fresh("import alpro_hf_launch, sys; print('alpro_hf' in sys.modules)") == "False\n"


@pytest.mark.slow
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


@pytest.mark.slow
def test_public_names_are_listed_before_they_are_imported() -> None:
    """By `dir`, for completion, and by `__all__`; and type checkers see the same names."""
    listed, public, loaded = json.loads(
        fresh("import alpro_hf, json, sys; print(json.dumps([dir(alpro_hf), alpro_hf.__all__, sorted(sys.modules)]))")
    )
    assert {*public, "__version__", "registration"} <= set(listed)
    assert "alpro_hf.training.trainer" not in loaded
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    [checked] = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert imported == alpro_hf._MODULES
    assert sorted(imported) == sorted(public)


def test_the_folder_of_the_model_is_exactly_what_travels() -> None:
    """Its `__init__.py` stays at home and empty: the process that decodes imports it, and must not import torch."""
    folder = SOURCE / "model"
    assert (folder / "__init__.py").read_bytes() == b""
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == sorted(
        [folder / "__init__.py", *code_files()]
    )
    assert all(path.suffix == ".py" for path in code_files())


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


def test_the_module_as_a_command_imports_no_torch_for_help() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "alpro_hf", "index", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0 and "alpro index" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "alpro_hf.cli.main" in imported and not imported & {"torch", "transformers"}
