// Included first by every .cu file. nvcc cannot read fmt's headers as g++ does (consteval, __int128), and mixing two
// readings of one library would break the one-definition rule: so nvcc's files get a header-only copy of fmt in a
// namespace of its own. They only ever use it to throw.
#pragma once
#define FMT_HEADER_ONLY 1
#define FMT_USE_CONSTEXPR 1
#define FMT_CONSTEVAL constexpr
#define FMT_BEGIN_NAMESPACE \
  namespace fmt {           \
  inline namespace nvcc {
#define FMT_END_NAMESPACE \
  }                       \
  }
