# Makes the report's page and its chart library string literals of a C++ header.
file(READ ${PAGE} page)
file(READ ${CHARTJS} chartjs)
string(REGEX REPLACE "//# sourceMappingURL=[^\n]*" "" chartjs "${chartjs}")
file(WRITE ${HEADER} "// Written by scripts/embed.cmake.
inline constexpr char kPage[] = R\"linnet-page(${page})linnet-page\";
inline constexpr char kChartJs[] = R\"linnet-page(${chartjs})linnet-page\";
")
