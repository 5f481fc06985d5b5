"""What Triton's interpreter computes differently from a GPU, put right. Importing this module repairs it.

* bfloat16 blocks are bit patterns in uint16 arrays, and the stock interpreter multiplies and adds those as integers and
  rounds float32 to bfloat16 toward zero. Here casts round to nearest even, `tl.dot` decodes its operands, and any other
  arithmetic on bfloat16 is refused: the kernels compute in float32.
* A Python float handed to a kernel stays a double; a GPU receives float32 unless the parameter says `tl.float64`.
* Masked-off lanes of a load without `other` read as zero; on a GPU they are whatever the register held. Here they are
  NaN or the largest integer.
* `tl.device_assert` and `tl.assume` are checked.
"""

import dataclasses
import inspect

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import _normalize_ty

if not triton.knobs.runtime.interpret:
    raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
_BITWISE = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}


def decode_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def encode_bf16(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, to nearest, ties to even, NaN to the quiet NaN a GPU writes."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _is_bf16(handle: object) -> bool:
    return isinstance(handle, Handle) and handle.dtype.scalar == tl.bfloat16


def _decoded(handle: Handle) -> Handle:
    return Handle(decode_bf16(handle.data), tl.float32) if _is_bf16(handle) else handle


def _repair_casts() -> None:
    stock_cast, stock_fp_to_fp = Builder.cast_impl, Builder.create_fp_to_fp

    def cast(self, source, target):
        if target.scalar == tl.bfloat16:
            return source if _is_bf16(source) else Handle(encode_bf16(source.data), tl.bfloat16)
        return stock_cast(self, _decoded(source), target)

    def fp_to_fp(self, source, target, rounding):
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            if rounding not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
                raise NotImplementedError(f"bfloat16 casts round to nearest even only, not {rounding}")
            return cast(self, source, target)
        return stock_fp_to_fp(self, source, target, rounding)

    Builder.cast_impl, Builder.create_fp_to_fp = cast, fp_to_fp


def _repair_arithmetic() -> None:
    stock_dot, stock_binary, stock_unary = Builder.create_dot, Builder.binary_op, Builder.unary_op
    stock_reduce = interpreter.ReduceOps.apply_impl

    def refuse(*handles):
        if any(_is_bf16(handle) for handle in handles):
            raise NotImplementedError("arithmetic on bfloat16: convert to float32 first")

    def dot(self, a, b, accumulator, *options):
        return stock_dot(self, _decoded(a), _decoded(b), accumulator, *options)

    def binary(self, a, b, op):
        if op not in _BITWISE:
            refuse(a, b)
        return stock_binary(self, a, b, op)

    def unary(self, a, op):
        refuse(a)
        return stock_unary(self, a, op)

    def reduce(self, inputs):
        refuse(*(tensor.handle for tensor in inputs))
        return stock_reduce(self, inputs)

    Builder.create_dot, Builder.binary_op, Builder.unary_op = dot, binary, unary
    interpreter.ReduceOps.apply_impl = reduce


def _repair_loads() -> None:
    stock = Builder.create_masked_load

    def poison(dtype: tl.dtype, shape: tuple[int, ...]) -> Handle:
        kind = interpreter._get_np_dtype(dtype)
        if dtype == tl.bfloat16:
            return Handle(np.full(shape, 0x7FFF, kind), dtype)
        value = np.nan if kind.kind == "f" else True if kind.kind == "b" else np.iinfo(kind).max
        return Handle(np.full(shape, value, kind), dtype)

    def load(self, pointers, mask, other, *options):
        if other is None:
            other = poison(pointers.get_element_ty(), pointers.data.shape)
        return stock(self, pointers, mask, other, *options)

    Builder.create_masked_load = load


def _repair_arguments() -> None:
    stock = interpreter.GridExecutor._init_args_hst

    def typed(self, name, value):
        if not isinstance(value, float) or name in self.constexprs:
            return value
        is_double = _normalize_ty(inspect.get_annotations(self.fn).get(name, "")) == "fp64"
        dtype, kind = (tl.float64, np.float64) if is_double else (tl.float32, np.float32)
        return tl.tensor(Handle(np.array([value], kind), dtype), dtype)

    def init(self, args, kwargs):
        hosted, hosted_kwargs = stock(self, args, kwargs)
        hosted = [typed(self, name, value) for name, value in zip(self.arg_names, hosted, strict=False)]
        return hosted, {name: typed(self, name, value) for name, value in hosted_kwargs.items()}

    interpreter.GridExecutor._init_args_hst = init


def _repair_device_calls() -> None:
    def call(self, *args, **kwargs):
        # The stock version patches all of triton.language again on every call, most of the time of a small kernel.
        languages = [value for value in self.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.load) for language in languages):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _repair_loop_bounds() -> None:
    stock = interpreter._patch_lang_tensor

    def patch(tensor, *scope):
        # Triton 3.6 makes an int of an array of one element, which NumPy 2.4 refuses.
        stock(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch


_repair_casts()
_repair_arithmetic()
_repair_loads()
_repair_arguments()
_repair_device_calls()
_repair_loop_bounds()
interpreter.interpreter_builder.options = dataclasses.replace(interpreter.interpreter_builder.options, debug=True)
