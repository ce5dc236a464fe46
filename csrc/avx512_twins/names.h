// The names of AVX-512's intrinsics for their twins. CMake puts this in front of the files of that instruction set
// where SPOS_AVX512_TWINS is on; they are compiled for AVX2 then, and the compiler refuses an intrinsic that has no
// twin.
#pragma once

#include "avx512_twins/floats.h"
#include "avx512_twins/integers.h"

#define __m512 ::spos::twins::Floats
#define __m512d ::spos::twins::Doubles
#define __m512i ::spos::twins::Integers

// Macros in the compiler's own header, some of them where it does not optimise.
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 ::spos::twins::mm512_setr_epi32
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, predicate) ::spos::twins::mm512_cmp_ps_mask<(predicate)>(a, b)
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64(a, half) ::spos::twins::mm512_extracti64x4_epi64<(half)>(a)
#undef _mm512_mask_roundscale_ps
#define _mm512_mask_roundscale_ps(kept, mask, a, control) \
    ::spos::twins::mm512_mask_roundscale_ps<(control)>(kept, mask, a)

#define _mm512_abs_ps ::spos::twins::mm512_abs_ps
#define _mm512_add_epi32 ::spos::twins::mm512_add_epi32
#define _mm512_add_epi64 ::spos::twins::mm512_add_epi64
#define _mm512_add_pd ::spos::twins::mm512_add_pd
#define _mm512_add_ps ::spos::twins::mm512_add_ps
#define _mm512_and_ps ::spos::twins::mm512_and_ps
#define _mm512_and_si512 ::spos::twins::mm512_and_si512
#define _mm512_castps_si512 ::spos::twins::mm512_castps_si512
#define _mm512_castsi512_ps ::spos::twins::mm512_castsi512_ps
#define _mm512_castsi512_si256 ::spos::twins::mm512_castsi512_si256
#define _mm512_cvtepi64_epi32 ::spos::twins::mm512_cvtepi64_epi32
#define _mm512_div_ps ::spos::twins::mm512_div_ps
#define _mm512_dpbusd_epi32 ::spos::twins::mm512_dpbusd_epi32
#define _mm512_fmadd_pd ::spos::twins::mm512_fmadd_pd
#define _mm512_fmadd_ps ::spos::twins::mm512_fmadd_ps
#define _mm512_load_si512 ::spos::twins::mm512_load_si512
#define _mm512_loadu_pd ::spos::twins::mm512_loadu_pd
#define _mm512_loadu_ps ::spos::twins::mm512_loadu_ps
#define _mm512_loadu_si512 ::spos::twins::mm512_loadu_si512
#define _mm512_mask_cvtepi32_storeu_epi8 ::spos::twins::mm512_mask_cvtepi32_storeu_epi8
#define _mm512_mask_max_pd ::spos::twins::mm512_mask_max_pd
#define _mm512_mask_max_ps ::spos::twins::mm512_mask_max_ps
#define _mm512_mask_min_ps ::spos::twins::mm512_mask_min_ps
#define _mm512_mask_mov_ps ::spos::twins::mm512_mask_mov_ps
#define _mm512_mask_scalef_ps ::spos::twins::mm512_mask_scalef_ps
#define _mm512_mask_storeu_epi8 ::spos::twins::mm512_mask_storeu_epi8
#define _mm512_mask_storeu_ps ::spos::twins::mm512_mask_storeu_ps
#define _mm512_maskz_cvtps_epi32 ::spos::twins::mm512_maskz_cvtps_epi32
#define _mm512_maskz_loadu_epi8 ::spos::twins::mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_ps ::spos::twins::mm512_maskz_loadu_ps
#define _mm512_maskz_max_epi32 ::spos::twins::mm512_maskz_max_epi32
#define _mm512_maskz_mov_ps ::spos::twins::mm512_maskz_mov_ps
#define _mm512_mul_pd ::spos::twins::mm512_mul_pd
#define _mm512_mul_ps ::spos::twins::mm512_mul_ps
#define _mm512_multishift_epi64_epi8 ::spos::twins::mm512_multishift_epi64_epi8
#define _mm512_or_ps ::spos::twins::mm512_or_ps
#define _mm512_permutex2var_ps ::spos::twins::mm512_permutex2var_ps
#define _mm512_permutexvar_epi8 ::spos::twins::mm512_permutexvar_epi8
#define _mm512_popcnt_epi64 ::spos::twins::mm512_popcnt_epi64
#define _mm512_reduce_add_epi64 ::spos::twins::mm512_reduce_add_epi64
#define _mm512_sad_epu8 ::spos::twins::mm512_sad_epu8
#define _mm512_set1_epi32 ::spos::twins::mm512_set1_epi32
#define _mm512_set1_epi64 ::spos::twins::mm512_set1_epi64
#define _mm512_set1_epi8 ::spos::twins::mm512_set1_epi8
#define _mm512_set1_pd ::spos::twins::mm512_set1_pd
#define _mm512_set1_ps ::spos::twins::mm512_set1_ps
#define _mm512_setzero_pd ::spos::twins::mm512_setzero_pd
#define _mm512_setzero_ps ::spos::twins::mm512_setzero_ps
#define _mm512_setzero_si512 ::spos::twins::mm512_setzero_si512
#define _mm512_sll_epi16 ::spos::twins::mm512_sll_epi16
#define _mm512_srai_epi32 ::spos::twins::mm512_srai_epi32
#define _mm512_storeu_pd ::spos::twins::mm512_storeu_pd
#define _mm512_storeu_ps ::spos::twins::mm512_storeu_ps
#define _mm512_storeu_si512 ::spos::twins::mm512_storeu_si512
#define _mm512_stream_ps ::spos::twins::mm512_stream_ps
#define _mm512_sub_epi8 ::spos::twins::mm512_sub_epi8
#define _mm512_sub_ps ::spos::twins::mm512_sub_ps
#define _mm512_test_epi8_mask ::spos::twins::mm512_test_epi8_mask
#define _mm512_unpackhi_epi32 ::spos::twins::mm512_unpackhi_epi32
#define _mm512_unpackhi_epi64 ::spos::twins::mm512_unpackhi_epi64
#define _mm512_unpacklo_epi32 ::spos::twins::mm512_unpacklo_epi32
#define _mm512_unpacklo_epi64 ::spos::twins::mm512_unpacklo_epi64
#define _mm_mask_storeu_epi32 ::spos::twins::mm_mask_storeu_epi32
#define _mm_maskz_loadu_epi32 ::spos::twins::mm_maskz_loadu_epi32
