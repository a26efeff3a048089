"""Errors of downloading, exporting and publishing.

Each message is one sentence or two: the file or repository, and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..bounded_answers import UnboundedAnswerError
from ..untrusted_json import read_json

# The client reads answers without a check of their types. So one that is no answer of a Hub, such as a page in HTML,
# ends in any of these.
_NO_ANSWERS = (ValueError, KeyError, TypeError, AttributeError, IndexError)


class ExportError(ValueError):
    """A checkpoint cannot be exported."""


class DownloadError(OSError):
    """A file cannot be downloaded. What has arrived is kept in the cache."""


class ModelCardError(ValueError):
    """A file that a model card is written from cannot be used."""


class OnnxExportError(ValueError):
    """A model cannot be exported to ONNX, or the export does not give the numbers of the model."""


class PublishError(RuntimeError):
    """Something could not be published. What the Hub already had is unchanged."""


def read_json_object(path: Path, error: type[ExportError] | type[ModelCardError]) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Args:
        path: The file.
        error: Type of error to raise if it does not.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise error(f"{path.parent} holds no {path.name}.") from None
    except ValueError as reason:
        raise error(f"{path} is not valid JSON: {reason}.") from None
    if not isinstance(content, dict):
        raise error(f"{path} must hold a JSON object; it holds a {type(content).__name__}.")
    return content


@contextmanager
def explained(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turn errors of the Hub and of its client into a `PublishError` that says what to do.

    Args:
        repo_id: Repository that the requests are about.
        api: The client that sends them.
    """
    try:
        yield
    except PublishError:  # which is a RuntimeError
        raise
    except LocalTokenNotFoundError:
        raise PublishError(
            "There is no token for the Hub: run 'hf auth login', or set HF_TOKEN, and repeat."
        ) from None
    except OfflineModeIsEnabled:
        raise PublishError("The Hub cannot be asked, because HF_HUB_OFFLINE is set; unset it and repeat.") from None
    except HfHubHTTPError as error:
        raise PublishError(_explain_status(error, repo_id)) from error
    except HTTPError as error:
        raise PublishError(_explain_connection(error, repo_id, api)) from error
    except _NO_ANSWERS as error:
        if not isinstance(error.__cause__, HfHubHTTPError):
            raise PublishError(_explain_answer(error, repo_id, api)) from error
        # the client reports a card with invalid metadata in this way
        reason = " ".join(str(error).split())
        raise PublishError(f"The Hub refuses {repo_id}: {reason} Correct it and repeat.") from error
    except RuntimeError as error:
        # the client wraps errors of its upload threads in these
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise PublishError(_explain_status(cause, repo_id)) from error
        if isinstance(cause, HTTPError):
            raise PublishError(_explain_connection(cause, repo_id, api)) from error
        if isinstance(cause, Exception):  # such as one of the protocol, after a redirect in the middle of a file
            raise PublishError(_explain_answer(cause, repo_id, api)) from error
        raise


def _explain_answer(error: Exception, repo_id: str, api: HfApi) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{api.endpoint} does not answer as the Hub does ({reason:.200}). Check HF_ENDPOINT and proxies, and look at "
        f"{repo_id} before you repeat: what was sent may be there or not."
    )


def _explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    namespace = repo_id.partition("/")[0]
    said = f"the Hub says: {error.server_message}" if error.server_message else "the Hub does not say why"
    status = error.response.status_code
    # 402, 403 and 409 have several causes, so these quote the Hub
    sentences = {
        401: "The Hub does not accept the token: run 'hf auth login', or set HF_TOKEN to a valid one, and repeat",
        402: f"{repo_id} needs a paid plan ({said})",
        403: f"The token may not write to {repo_id}: use one that may write to {namespace}, or another name ({said})",
        404: f"The Hub does not find {repo_id}, or the token may not see it; check the name and the token",
        409: f"{repo_id} was changed by somebody else at the same time; look at it and repeat ({said})",
        412: f"Somebody else has committed to {repo_id} since it was compared; look at their commit and repeat",
        429: "The Hub asks for a pause, because it received too many requests; wait some minutes and repeat",
    }
    if status in sentences:
        return f"{sentences[status]}. Nothing was published."
    if status >= 500:
        return f"The Hub is in trouble (status {status}); repeat later, and the upload continues where it stopped."
    return f"The Hub refuses {repo_id} (status {status}; {said}). Nothing was published."


def _explain_connection(error: Exception, repo_id: str, api: HfApi) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnboundedAnswerError):
        return _explain_answer(error, repo_id, api)
    return (
        f"The connection to {api.endpoint} failed ({reason}). Check it and repeat: the upload continues where it "
        "stopped, and nobody sees a half-finished one."
    )


__all__ = [
    "DownloadError",
    "ExportError",
    "ModelCardError",
    "OnnxExportError",
    "PublishError",
    "explained",
    "read_json_object",
]
