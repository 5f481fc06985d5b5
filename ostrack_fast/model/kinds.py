"""What kind of file this is, from its first bytes, in words that help who expected weights."""

from __future__ import annotations

import struct

_AGAIN = "download it again"
_MAGIC = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run `git lfs pull`, or " + _AGAIN),
    (b"\x93NUMPY", "is a NumPy array, not a checkpoint"),
    (b"\x89HDF", "is an HDF5 file (Keras?), not a PyTorch checkpoint"),
    (b"GGUF", "is a GGUF file (of a language model), not a PyTorch checkpoint"),
    (b"\x89PNG", "is a picture (PNG), not a checkpoint"),
    (b"\xff\xd8\xff", "is a picture (JPEG), not a checkpoint"),
    (b"%PDF", "is a PDF document, not a checkpoint"),
    (b"\x7fELF", "is a program, not a checkpoint"),
    (b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (b"\xfd7zXZ", "is compressed (xz): unpack it first"),
    (b"BZh", "is compressed (bzip2): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
)
# Number with which `torch.save` began its files before 1.6, as a pickle writes it.
_LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")
# First members of the tar archives that PyTorch wrote before 0.2.
_OLD_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")


def kind_of(head: bytes, size: int) -> str:
    """ "safetensors", "zip" or "legacy" for what can be read; else a sentence that says what the file is.

    Args:
        head: its first bytes, some hundred at least where it has as many.
        size: its length in bytes.
    """
    if size == 0:
        return f"is empty: {_AGAIN}"
    if not head.strip(b"\0"):
        return f"begins with nothing but zeros: it is an unfinished download; {_AGAIN}"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80") and _LEGACY in head[:32]:
        return "legacy"
    if head[8:9] == b"{" and len(head) > 8:
        (length,) = struct.unpack_from("<Q", head)
        if length < 1 << 40:
            return "safetensors" if length + 8 <= size else f"is cut off ({size} bytes): {_AGAIN}"
    for magic, sentence in _MAGIC:
        if head.startswith(magic):
            return sentence
    if head[257:262] == b"ustar":
        old = head[:100].rstrip(b"\0").startswith(_OLD_TAR)
        return (
            "is a checkpoint of PyTorch before 0.2 (a tar archive), which is not read: save its state_dict() again "
            "with a PyTorch of that time that reads it, as .npz or as safetensors"
            if old
            else "is a tar archive: unpack it first"
        )
    return _text(head, size)


def _text(head: bytes, size: int) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<")):
        return f"is a web page, not a checkpoint: the link led to a page about the file; {_AGAIN} from that page"
    if start.startswith((b"{", b"[")):
        return f"is JSON text, not a checkpoint: a server's answer? {_AGAIN}"
    if head.startswith(b"\x80") and head[1:2] in b"\x00\x01\x02\x03\x04\x05":
        return "is a pickle, but no checkpoint of PyTorch"
    text = head.translate(None, b"\t\r\n\f")
    if text.isascii() and text.decode("ascii").isprintable():
        return "is text, not a checkpoint"
    if size < 64:
        return f"is cut off ({size} bytes): {_AGAIN}"
    return "is of no known format: neither safetensors nor a checkpoint of PyTorch"
