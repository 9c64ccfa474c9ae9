#include "base/bf16.h"
#include "kernels/rounding/matrix.h"
#include "tests/testing.h"

#include <algorithm>

using namespace ernie;

namespace {

// x^T x of correlated rows, and something on the diagonal.
std::vector<float> gram_of(std::mt19937& random, size_t n) {
  const size_t rows = 3 * n;
  auto x = normals(random, rows * n);
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 1; c < n; ++c) x[r * n + c] += 0.7f * x[r * n + c - 1];
  std::vector<float> gram(n * n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) {
      double sum = i == j ? 0.1 * static_cast<double>(rows) : 0.0;
      for (size_t r = 0; r < rows; ++r) sum += static_cast<double>(x[r * n + i]) * x[r * n + j];
      gram[i * n + j] = static_cast<float>(sum / static_cast<double>(rows));
    }
  return gram;
}

void test_factor_and_solve(const Kernels& kernels, std::mt19937& random, size_t n) {
  Workspace memory;
  ThreadPool pool(2);
  const auto gram = gram_of(random, n);
  std::vector<float> reach(n * n, NAN);
  auto below = gram;  // what is above the diagonal is not read
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i + 1; j < n; ++j) below[i * n + j] = NAN;
  CHECK(factor_matrix(kernels.rounding, below.data(), n, reach.data(), memory, pool));
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (size_t k = 0; k < n; ++k) sum += static_cast<double>(reach[k * n + i]) * reach[k * n + j];
      CHECK_NEAR(sum, gram[i * n + j], 1e-5 * 10);
      if (j > i) CHECK(reach[i * n + j] == 0.0f);
    }
  const size_t rows = n == 40 ? 70 : 3;
  const auto right = normals(random, rows * n);
  auto solved = right;
  solve_matrix(kernels.rounding, reach.data(), n, solved.data(), rows, memory, pool);
  for (size_t r = 0; r < rows; ++r)
    for (size_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (size_t k = 0; k < n; ++k) sum += static_cast<double>(solved[r * n + k]) * gram[k * n + j];
      CHECK_NEAR(sum, right[r * n + j], 2e-3);
    }
  std::vector<float> negative(n * n, 0.0f);
  for (size_t i = 0; i < n; ++i) negative[i * n + i] = i == n / 2 ? -1.0f : 1.0f;
  CHECK(!factor_matrix(kernels.rounding, negative.data(), n, reach.data(), memory, pool));
}

struct Result {
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales, exact;
  std::vector<uint8_t> subs;
  std::vector<float> values;
};

Result round_all(const Kernels& kernels, Rounding how, const std::vector<float>& weights, size_t rows, int threads) {
  ThreadPool pool(threads);
  const size_t groups = div_up(how.cols, how.group), sixteenths = div_up(how.cols, 16);
  const auto kept = static_cast<size_t>(std::count(how.exact, how.exact + how.cols, 1));
  Result r{std::vector<int8_t>(rows * how.cols), std::vector<uint16_t>(rows * groups), std::vector<uint16_t>(rows * kept),
           std::vector<uint8_t>(rows * sixteenths), std::vector<float>(rows * how.cols)};
  round_matrix(kernels.rounding, how, weights.data(), rows,
               {r.codes.data(), r.scales.data(), how.factors ? r.subs.data() : nullptr, r.exact.data()}, pool);
  for (size_t row = 0; row < rows; ++row) {
    size_t e = 0;
    for (size_t c = 0; c < how.cols; ++c) {
      const float factor = how.factors ? r.subs[row * sixteenths + c / 16] : 1.0f;
      float value = bf16_to_float(r.scales[row * groups + c / how.group]) * factor * r.codes[row * how.cols + c];
      if (how.exact[c]) value = bf16_to_float(r.exact[row * kept + e++]);
      CHECK(r.codes[row * how.cols + c] >= how.low && r.codes[row * how.cols + c] <= how.high);
      r.values[row * how.cols + c] = value;
    }
  }
  return r;
}

double cost(const std::vector<float>& weights, const std::vector<float>& values, const std::vector<float>& gram, size_t n) {
  double sum = 0.0;
  for (size_t row = 0; row < weights.size() / n; ++row)
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j)
        sum += static_cast<double>(weights[row * n + i] - values[row * n + i]) * gram[i * n + j] *
               (weights[row * n + j] - values[row * n + j]);
  return sum;
}

void test_round(const Kernels& kernels, std::mt19937& random, size_t n, int bits) {
  const size_t rows = 19;
  const auto weights = normals(random, rows * n);
  const auto gram = gram_of(random, n);
  std::vector<float> reach(n * n), weigh(n), ones(n, 1.0f);
  ThreadPool pool(1);
  Workspace memory;
  CHECK(factor_matrix(kernels.rounding, gram.data(), n, reach.data(), memory, pool));
  for (size_t i = 0; i < n; ++i) weigh[i] = reach[i * n + i] * reach[i * n + i];
  std::vector<uint8_t> exact(n, 0);
  exact[n / 2] = exact[n - 1] = 1;
  const std::vector<float> clips = {1.0f, 0.9f};
  Rounding how{.cols = n, .group = 64, .weigh = ones.data(), .exact = exact.data(), .clips = clips.data(),
               .clip_count = clips.size()};
  how.high = bits == 8 ? 127.0f : bits == 6 ? 31.0f : 7.0f;
  how.low = bits == 8 ? -127.0f : bits == 6 ? -32.0f : -8.0f;
  how.factors = bits == 4;
  const Result nearest = round_all(kernels, how, weights, rows, 1);
  for (size_t row = 0; row < rows; ++row)
    for (size_t c : {n / 2, n - 1}) CHECK(nearest.values[row * n + c] == bf16_to_float(float_to_bf16(weights[row * n + c])));
  how.reach = reach.data(), how.weigh = weigh.data();
  const Result fed = round_all(kernels, how, weights, rows, 1);
  const double before = cost(weights, nearest.values, gram, n), after = cost(weights, fed.values, gram, n);
  if (n > 16) CHECK(after < 0.75 * before);
  const Result again = round_all(kernels, how, weights, rows, 2);
  CHECK(fed.codes == again.codes && fed.scales == again.scales && fed.subs == again.subs && fed.exact == again.exact);
}

// Values that are codes times a scale come back as they are.
void test_round_keeps_codes(const Kernels& kernels) {
  const size_t n = 48;
  std::vector<float> weights(n);
  for (size_t i = 0; i < n; ++i) weights[i] = 0.25f * static_cast<float>(static_cast<int>(i * 37 % 255) - 127);
  weights[5] = -0.25f * 127;
  std::vector<float> ones(n, 1.0f);
  std::vector<uint8_t> exact(n, 0);
  const float clip = 1.0f;
  const Rounding how{.cols = n, .group = 48, .low = -127, .high = 127, .weigh = ones.data(), .exact = exact.data(),
                     .clips = &clip, .clip_count = 1};
  CHECK(round_all(kernels, how, weights, 1, 1).values == weights);
  const std::vector<float> zeros(n, 0.0f);
  CHECK(round_all(kernels, how, zeros, 1, 1).values == zeros);
}

void test_multiply(const Kernels& kernels, std::mt19937& random) {
  Workspace memory;  // of larger calls before too
  for (size_t cols : {1, 24, 150})
    for (size_t rows : {1, 70, 300}) {
      const auto x = normals(random, rows * cols), w = normals(random, 301 * cols);
      std::vector<float> out(rows * 301, NAN), again = out;
      ThreadPool one(1), two(2);
      multiply_matrix(kernels, x.data(), rows, w.data(), 301, cols, out.data(), memory, one);
      multiply_matrix(kernels, x.data(), rows, w.data(), 301, cols, again.data(), memory, two);
      CHECK(out == again);
      for (size_t r = 0; r < rows; ++r) {
        for (size_t o = 0; o < 301; ++o) {
          double sum = 0.0;
          for (size_t c = 0; c < cols; ++c) sum += static_cast<double>(x[r * cols + c]) * w[o * cols + c];
          CHECK_NEAR(out[r * 301 + o], sum, 1e-4 + 1e-5 * std::fabs(sum));
        }
      }
    }
}

void check_product(const std::vector<float>& x, size_t m, size_t x_cols, const std::vector<float>& y, size_t n,
                   size_t y_cols, float found) {
  double sum = 0.0;
  for (size_t t = 0; t < x.size() / x_cols; ++t) sum += static_cast<double>(x[t * x_cols + m]) * y[t * y_cols + n];
  CHECK_NEAR(found, sum, 2e-4 + 1e-5 * std::fabs(sum));
}

void test_cross(const Kernels& kernels, std::mt19937& random) {
  Workspace memory;
  for (size_t cols : {1, 24, 150})
    for (size_t rows : {1, 70, 1100}) {
      const auto x = normals(random, rows * cols), y = normals(random, rows * 37);
      std::vector<float> out(cols * 37, NAN), again = out, lower(cols * cols, NAN);
      ThreadPool one(1), two(2);
      cross_matrix(kernels, x.data(), cols, y.data(), 37, rows, false, out.data(), memory, one);
      cross_matrix(kernels, x.data(), cols, y.data(), 37, rows, false, again.data(), memory, two);
      cross_matrix(kernels, x.data(), cols, x.data(), cols, rows, true, lower.data(), memory, two);
      CHECK(out == again);
      for (size_t m = 0; m < cols; ++m) {
        for (size_t n = 0; n < 37; ++n) check_product(x, m, cols, y, n, 37, out[m * 37 + n]);
        for (size_t n = 0; n <= m; ++n) check_product(x, m, cols, x, n, cols, lower[m * cols + n]);
      }
    }
}

}  // namespace

int main() {
  for_each_isa([](const Kernels& kernels) {
    std::mt19937 random(5);
    for (size_t n : {1, 16, 40, 130}) test_factor_and_solve(kernels, random, n);
    for (size_t n : {2, 16, 40, 130, 256})
      for (int bits : {4, 6, 8}) test_round(kernels, random, n, bits);
    test_round_keeps_codes(kernels);
    test_multiply(kernels, random);
    test_cross(kernels, random);
  });
  std::puts("rounding: ok");
}
