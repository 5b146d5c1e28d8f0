"""The MDS format as its documentation tells it, written in the plainest way: for tests alone."""

import gzip
import hashlib
import json
import struct

import numpy as np
import zstandard

COMPRESS = {"zstd": zstandard.compress, "gz": gzip.compress}
CODES = {"uint8": 8, "int8": 9, "uint16": 16, "int16": 17, "float16": 18, "uint32": 32, "int32": 33, "float32": 34,
         "uint64": 64, "int64": 65, "float64": 66}  # fmt: skip


def encode(encoding, value):
    """One value as bytes."""
    name, _, details = encoding.partition(":")
    if isinstance(value, bytes):
        return value
    if name == "str":
        return value.encode()
    if name == "int":
        return struct.pack("<q", value)
    if name == "json":
        return json.dumps(value).encode()
    if name.startswith("str_"):
        return str(value).encode()
    if name != "ndarray":
        return np.dtype(name).type(value).tobytes()
    kind, _, shape = details.partition(":")
    head = b"" if kind else bytes([CODES[value.dtype.name]])
    if not shape:
        power = next(power for power in range(4) if max(value.shape) < 1 << (8 << power))
        head += bytes([value.ndim << 2 | power])
        head += b"".join(length.to_bytes(1 << power, "little") for length in value.shape)
    return head + value.tobytes()


def fixed_size(encoding):
    """Bytes of every value of this encoding, None where they differ."""
    name, _, details = encoding.partition(":")
    if name == "int":
        return 8
    if name == "ndarray":
        kind, _, shape = details.partition(":")
        return int(np.prod([int(n) for n in shape.split(",")])) * np.dtype(kind).itemsize if shape else None
    return np.dtype(name).itemsize if name in CODES else None


def shard_bytes(columns, samples):
    """One shard: count, offsets, the columns as JSON, the samples."""
    names = sorted(columns)
    sizes = {name: fixed_size(columns[name]) for name in names}
    rows = []
    for sample in samples:
        values = {name: encode(columns[name], sample[name]) for name in names}
        head = b"".join(struct.pack("<I", len(values[name])) for name in names if sizes[name] is None)
        rows.append(head + b"".join(values.values()))
    config = json.dumps({"column_names": names, "format": "mds", "version": 2}).encode()
    begin = 4 + 4 * (len(rows) + 1) + len(config)
    offsets = np.cumsum([begin, *map(len, rows)]).astype("<u4")
    return struct.pack("<I", len(rows)) + offsets.tobytes() + config + b"".join(rows)


def write_mds(folder, columns, samples, *, per_shard=100, compression=None, hashes=("sha1",), keep_raw=False):
    """Write a folder of shards with its index; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(columns)
    shards = []
    for number, first in enumerate(range(0, len(samples), per_shard)):
        part = samples[first : first + per_shard]
        raw, basename = shard_bytes(columns, part), f"shard.{number:05d}.mds"
        packed = COMPRESS[compression.partition(":")[0]](raw) if compression else None
        for data, name in ((raw, basename), (packed, f"{basename}.{(compression or '').partition(':')[0]}")):
            if data is not None and (data is packed or not compression or keep_raw):
                (folder / name).write_bytes(data)
        about = [
            data and {
                "basename": name, "bytes": len(data),
                "hashes": {algorithm: hashlib.new(algorithm, data).hexdigest() for algorithm in hashes},
            }
            for data, name in ((raw, basename), (packed, f"{basename}.{(compression or '').partition(':')[0]}"))
        ]  # fmt: skip
        shards.append({
            "column_encodings": [columns[name] for name in names], "column_names": names,
            "column_sizes": [fixed_size(columns[name]) for name in names], "compression": compression,
            "format": "mds", "hashes": list(hashes), "raw_data": about[0], "samples": len(part),
            "size_limit": 2**26, "version": 2, "zip_data": about[1],
        })  # fmt: skip
    index = {"shards": shards, "version": 2}
    (folder / "index.json").write_text(json.dumps(index))
    return index
