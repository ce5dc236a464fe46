"""The instruction sets that this processor can run."""

from spos_kernels import _C

LOWBIT_ISAS = [isa for isa in _C.Isa.__members__.values() if _C.isa_supported(isa)]
# Other operations have no kernels for AMX, and run those of AVX-512.
ISAS = [isa for isa in LOWBIT_ISAS if isa != _C.Isa.amx]
