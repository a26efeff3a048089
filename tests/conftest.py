"""Videos to test on: real clips that gradio's package carries, and transcodes of one of them made by PyAV."""

import hashlib
import importlib.util
import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fixtures import network

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder talks to stderr otherwise
# what searches in folders keep must not go to the cache of whoever runs the tests
_CACHE = tempfile.TemporaryDirectory(prefix="alpro-test-cache-")
os.environ["HF_ASSETS_CACHE"] = f"{_CACHE.name}/assets"
# nor the code of models, which would still lie there for the next run
os.environ["HF_MODULES_CACHE"] = f"{_CACHE.name}/modules"
# models here are tiny and tests run side by side: more threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the key of the user's seals belongs to the tests, and not to the home of whoever runs them
_STATE = tempfile.TemporaryDirectory(prefix="alpro-tests-")
os.environ["LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME"] = _STATE.name

RATE = 25


def pytest_configure() -> None:
    """Nothing that runs here, imports too, may speak to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            network.REACHED.append(str(address[0]))
            raise ConnectionRefusedError(f"A test tried to reach {address}, which is another machine.")
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Encoder = Callable[..., Path]


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """SVT-AV1 gives whoever opens it as root, and all processes that they start, precedence over everything else on
    the machine (SCHED_FIFO): processes that wait for each other then take the cores from those they wait for."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """File name -> path of gradio's sample videos: H.264 in mp4 and MPEG-4 in AVI, 150 to 901 frames."""
    package = importlib.util.find_spec("gradio")
    assert package is not None, "the tests need gradio for its sample videos: pip install 'alpro-hf[test]'"
    assert package.origin is not None
    return {path.name: path for path in sorted((Path(package.origin).parent / "media_assets" / "videos").iterdir())}


@pytest.fixture(scope="session")
def source_frames(real_clips: dict[str, Path]) -> np.ndarray:
    """(48, 90, 160, 3) uint8: every third frame of a real clip."""
    with av.open(str(real_clips["world.mp4"])) as container:
        kept = []
        for i, frame in enumerate(container.decode(video=0)):
            if i % 3 == 0:
                kept.append(frame.reformat(160, 90, "rgb24").to_ndarray())
            if len(kept) == 48:
                return np.stack(kept)
    raise AssertionError("the sample clip is shorter than expected")


@pytest.fixture(scope="session")
def encode(source_frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Writes the source frames as `name` with any codec; the same arguments give the same file again."""
    folder = tmp_path_factory.mktemp("clips")

    def encode(
        name: str,
        codec: str = "libx264",
        *,
        size: tuple[int, int] = (160, 90),
        pix_fmt: str = "yuv420p",
        gop: int = 12,
        b_frames: int | None = None,
        times: list[int] | None = None,
        options: dict[str, str] | None = None,
        muxer: dict[str, str] | None = None,
        num_frames: int = 48,
    ) -> Path:
        settings = repr((codec, size, pix_fmt, gop, b_frames, times, options, muxer, num_frames))
        path = folder / hashlib.sha256(settings.encode()).hexdigest()[:8] / name
        if path.exists():
            return path
        path.parent.mkdir(exist_ok=True)
        with ordinary_priority(), av.open(str(path), "w", container_options=muxer or {}) as container:
            stream = container.add_stream(codec, rate=RATE, options=options or {})
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            stream.codec_context.gop_size = gop
            if b_frames is not None:
                stream.codec_context.max_b_frames = b_frames
            tick = Fraction(1, 1000) if times else Fraction(1, RATE)
            if times:
                stream.codec_context.time_base = tick
            for i in range(num_frames):
                frame = av.VideoFrame.from_ndarray(source_frames[i], "rgb24").reformat(*size, pix_fmt)
                frame.pts, frame.time_base = times[i] if times else i, tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return encode
