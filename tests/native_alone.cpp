// The kernels without Python, for processors that this machine only emulates: random matrices, multiplied in every kind of
// codes and as numbers, against plain sums in double precision. Ends with 1 where one is wrong, and says which.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

extern "C" {
void lathe_panel_bytes(void*, int64_t, int64_t);
void lathe_panels(void*, void*, void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t);
void lathe_coded_product(const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void lathe_product(const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
}

static std::mt19937 source(0);
static float drawn() { return std::normal_distribution<float>()(source); }
static int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(source); }

static uint16_t bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t(bits >> 16);
}
static float number(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

static const int NF4[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};

// Halves, of which every one is a whole number of 1024ths between 1 and 2.
static uint16_t half(int n) { return uint16_t(0x3c00 + n); }
static double value(int n) { return 1 + n / 1024.0; }

static bool near(const char* what, int64_t kind, const std::vector<double>& exact, const float* found, double by) {
  double size = 0, off = 0;
  for (size_t i = 0; i < exact.size(); i++) {
    size = std::fmax(size, std::fabs(exact[i]));
    off = std::fmax(off, std::fabs(exact[i] - found[i]));
  }
  const bool good = off <= by * size;
  std::printf("%-6s %s %d: off by %.1e of %.1f\n", good ? "right" : "WRONG", what, int(kind), off, size);
  return good;
}

static bool codes(int64_t kind, int64_t N, int64_t K, int64_t T) {
  const bool halves = kind == 2 || kind == 3 || kind == 5 || kind == 6 || kind == 8, singles = kind <= 2;
  const bool minima = kind >= 6 && kind <= 9, levels = kind >= 8;
  const int64_t block = kind == 1 ? K : kind == 2 ? 64 : levels ? 256 : 32, fine = kind == 10 ? 16 : 32;
  const int64_t count = (K + block - 1) / block * (levels && minima ? 2 : 1);
  const int64_t others = (K + fine - 1) / fine * (levels && minima ? 2 : 1);
  const int64_t width = !halves ? K : kind == 2 ? (K + 63) / 64 * 32 : (K + 31) / 32 * 16;
  std::vector<uint8_t> packed(size_t(N * width)), zeros(size_t(N * others));
  std::vector<float> wide(size_t(N * count));
  std::vector<uint16_t> narrow(size_t(N * count)), lowest(size_t(N * others));
  std::vector<int> steps(size_t(N * count)), low(size_t(N * others));
  for (auto& c : packed) c = uint8_t(whole(0, 255));
  for (auto& z : zeros) z = uint8_t(whole(0, levels ? 255 : 16));
  for (size_t i = 0; i < low.size(); i++) lowest[i] = half(low[i] = whole(0, 1023));
  for (size_t i = 0; i < steps.size(); i++) {
    steps[i] = whole(0, 1023);
    wide[i] = float(value(steps[i])), narrow[i] = half(steps[i]);
  }
  int64_t bytes;
  lathe_panel_bytes(&bytes, K, kind);
  std::vector<uint8_t> panels(size_t((N + 15) / 16 * bytes)), again(packed.size());
  void* scales = singles ? (void*)wide.data() : (void*)narrow.data();
  void* points = kind == 5 || levels ? (void*)zeros.data() : minima ? lowest.data() : nullptr;
  lathe_panels(packed.data(), scales, points, panels.data(), N, K, kind, 0, 1);
  std::vector<float> x(size_t(T * K)), y(size_t(T * N));
  for (size_t i = 0; i < x.size(); i++) x[i] = i % 8 ? std::fmin(std::fmax(drawn(), -3.9f), 3.9f) : 127 / 32.0f;  // the largest
  lathe_coded_product(x.data(), panels.data(), nullptr, y.data(), T, N, K, kind, 0, 1);
  std::vector<double> exact(size_t(T * N));
  const auto level = [&](int64_t i) { return double(int8_t(zeros[size_t(i)])); };
  const auto scale = [&](int64_t n, int64_t i) { return value(steps[size_t(n * count + i)]); };
  for (int64_t t = 0; t < T; t++)
    for (int64_t from = 0; from < K; from += 32) {
      const int64_t to = from + 32 < K ? from + 32 : K;
      float largest = 0;
      for (int64_t k = from; k < to; k++) largest = std::fmax(largest, std::fabs(x[size_t(t * K + k)]));
      for (int64_t n = 0; n < N; n++)
        for (int64_t k = from; k < to; k++) {
          const uint8_t byte = packed[size_t(n * width + (halves ? k / 2 : k))];
          const int code = !halves ? int8_t(byte) : k % 2 ? byte & 15 : byte >> 4;
          const int64_t top = k / block, one = n * others + k / fine, two = n * others + k / fine * 2;
          const double times = levels && minima ? scale(n, 2 * top) * level(two) : scale(n, top) * (levels ? level(one) : 1);
          const double less = levels && minima ? scale(n, 2 * top + 1) * level(two + 1) : minima ? value(low[size_t(one)]) : 0;
          const double q = kind == 2 ? NF4[code] / 127.0 : kind == 3 ? code - 8 : kind == 5 ? code - zeros[size_t(one)] : code;
          const double row = std::nearbyint(x[size_t(t * K + k)] * (127.0f / largest)) * double(largest) / 127;
          exact[size_t(t * N + n)] += (q * times - less) * row;
        }
    }
  bool good = near("codes of kind", kind, exact, y.data(), 1e-5);
  lathe_panels(again.data(), scales, points, panels.data(), N, K, kind, 1, 1);
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < (halves ? K / 2 : K); k++)
      if (again[size_t(n * width + k)] != packed[size_t(n * width + k)]) {
        std::printf("WRONG  codes of kind %d come back as others\n", int(kind));
        return false;
      }
  return good;
}

static bool plain(int64_t type, int64_t N, int64_t K, int64_t T) {
  std::vector<float> x(size_t(T * K)), w(size_t(N * K)), y(size_t(T * N));
  std::vector<uint16_t> a(x.size()), b(w.size()), c(y.size());
  for (size_t i = 0; i < x.size(); i++) a[i] = bfloat(x[i] = number(bfloat(drawn())));
  for (size_t i = 0; i < w.size(); i++) b[i] = bfloat(w[i] = number(bfloat(drawn())));
  if (type == 0) {
    lathe_product(x.data(), w.data(), nullptr, y.data(), T, N, K, K, 0, 1);
  } else {
    lathe_product(a.data(), b.data(), nullptr, c.data(), T, N, K, K, 1, 1);
    for (size_t i = 0; i < y.size(); i++) y[i] = number(c[i]);
  }
  std::vector<double> exact(size_t(T * N));
  for (int64_t t = 0; t < T; t++)
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) exact[size_t(t * N + n)] += double(x[size_t(t * K + k)]) * w[size_t(n * K + k)];
  return near("numbers of type", type, exact, y.data(), type ? 0.004 : 1e-6);
}

int main() {
  bool good = true;
  for (int64_t kind = 1; kind <= 10; kind++)
    for (const int64_t T : {1, 7, 70}) good = codes(kind, 49, 200, T) && good;
  for (const int64_t T : {1, 7, 70})
    for (const int64_t type : {0, 1}) good = plain(type, 49, 200, T) && good;
  return good ? 0 : 1;
}
