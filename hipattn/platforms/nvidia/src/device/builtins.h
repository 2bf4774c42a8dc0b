// Clang's builtins that CUDA's compiler does not have.
#pragma once

#define __builtin_offsetof(type, member) ((unsigned long)__INTADDR__(&(((type*)0)->member)))

#define __builtin_inff() __int_as_float(0x7f800000)
#define __builtin_nanf(text) __int_as_float(0x7fc00000)
#define __builtin_fabsf(x) fabsf(x)
#define __builtin_fmaf(x, y, z) fmaf(x, y, z)
#define __builtin_fmaxf(x, y) fmaxf(x, y)
#define __builtin_fminf(x, y) fminf(x, y)
#define __builtin_sqrtf(x) sqrtf(x)
#define __builtin_trap() __trap()
