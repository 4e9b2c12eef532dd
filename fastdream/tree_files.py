"""A nested tree of tensors and plain values as safetensors files and JSON, exactly, and without pickle."""

import base64
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Names of the safetensors format for what PyTorch calls them.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}

Tensors = dict[str, torch.Tensor]


def pack(tree: dict[str, Any]) -> tuple[Any, dict[str, Tensors]]:
    """Take the tree apart: what JSON can hold, and each top-level key's tensors under slash-joined names.

    Leaves: tensors, NumPy arrays and scalars, bool, int of any size, float, str, bytes and None, in
    dictionaries, lists and tuples. Tensors are not copied. ValueError names the place of anything else.
    """
    for key in tree:
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise ValueError(
                f"a checkpoint's top-level keys name files: letters, digits, '_', '-', got {key!r}"
            )
    groups: dict[str, Tensors] = {}
    outline = {key: _pack(value, key, "", groups.setdefault(key, {})) for key, value in tree.items()}
    return outline, {key: tensors for key, tensors in groups.items() if tensors}


def unpack(outline: Any, groups: dict[str, Tensors]) -> dict[str, Any]:
    """The inverse of `pack`. KeyError when a tensor that the outline names is missing."""
    return {key: _unpack(value, groups.get(key, {})) for key, value in outline.items()}


def _pack(value: Any, group: str, name: str, tensors: Tensors) -> Any:
    """One node: JSON types as they are, everything else as a dictionary with one key that begins with '$'."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return _pack_tensor(value, group, name, tensors)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, (list, tuple)):
        items = [
            _pack(item, group, f"{name}/{i}" if name else str(i), tensors) for i, item in enumerate(value)
        ]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        pairs = [(k, _pack(v, group, f"{name}/{k}" if name else str(k), tensors)) for k, v in value.items()]
        if all(isinstance(k, str) and not k.startswith("$") for k, _ in pairs):
            return dict(pairs)
        return {"$dict": [[_pack(k, group, name, tensors), v] for k, v in pairs]}
    raise ValueError(f"a checkpoint cannot hold {group}/{name}: {type(value).__name__}")


def _pack_tensor(value: Any, group: str, name: str, tensors: Tensors) -> dict[str, str]:
    kind = "$tensor"
    if not isinstance(value, torch.Tensor):
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        value = _as_tensor(value, f"{group}/{name}")
    if value.dtype not in DTYPES or value.layout != torch.strided:
        raise ValueError(f"a checkpoint cannot hold {group}/{name}: a {value.layout} tensor of {value.dtype}")
    # Names joined by slashes may clash ({"a/b": x, "a": {"b": y}}), and a bare tensor has none.
    name = name or group
    while name in tensors:
        name += "'"
    tensors[name] = value.detach()
    return {kind: name}


def _as_tensor(value: Any, place: str) -> torch.Tensor:
    array = np.asarray(value)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy(order="C")
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint cannot hold {place}: an array of {array.dtype}") from error


def _unpack(value: Any, tensors: Tensors) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()), ("", None))
    if not kind.startswith("$"):
        return {key: _unpack(item, tensors) for key, item in value.items()}
    return _unpack_marked(kind, content, tensors)


def _unpack_marked(kind: str, content: Any, tensors: Tensors) -> Any:
    match kind:
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy()
        case "$scalar":
            return tensors[content].numpy()[()]
        case "$float":
            return float(content)
        case "$bytes":
            return base64.b64decode(content)
        case "$tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "$dict":
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    raise KeyError(kind)


def write_tensors(path: Path, tensors: Tensors) -> str:
    """Write a safetensors file and return its digest (see `digest`).

    The library's own writer wants all tensors in host memory at once and refuses tied ones; this one copies
    one tensor at a time from its device and hashes what it writes on the way.
    """
    # The widest elements first, so that every tensor lies aligned in a file without gaps.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        begin, end = end, end + nbytes(tensors[name])
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = hashlib.blake2b(digest_size=16)
    blocks = _blocks(tensors[name] for name in order)
    with path.open("wb") as file:
        for block in chain((struct.pack("<Q", len(text)), text), blocks):
            hasher.update(block)
            file.write(block)
    return hasher.hexdigest()


def _blocks(tensors: Iterator[torch.Tensor]) -> Iterator[bytes | memoryview]:
    for tensor in filter(torch.numel, tensors):  # an empty one has a stride of 0, and cannot be seen as bytes
        yield tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU; each has its own memory. The file must be sound."""
    import safetensors.torch

    return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes in a file."""
    return tensor.numel() * tensor.element_size()


def digest(path: Path) -> str:
    """A file's checksum: BLAKE2b of 16 bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
