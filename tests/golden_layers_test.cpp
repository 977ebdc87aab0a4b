// The specification's worked numbers that concern layers, losses and models (goldens.json of ALGORITHMS.md; those of
// optimizers, schedules and averages stand in tests/golden/ and are tested beside them).
#include <cmath>

#include "linnet/layers.h"
#include "linnet/model.h"
#include "op_case.h"

namespace linnet {
namespace {

class GoldenLayers : public testing::Test {
 protected:
  double loss_of(const std::vector<double>& logits, int32_t label) {
    const auto classes = int64_t(logits.size());
    const Tensor z = tensor_of(*be_, {1, classes}, DType::f32, logits);
    const Tensor labels = tensor_of(*be_, {1}, DType::i32, {double(label)});
    Pass pass{*be_, pool_};
    return download(*be_, softmax_cross_entropy(pass, z, labels, 0, 1).loss)[0];
  }
  std::unique_ptr<Backend> be_ = make_cpu_backend(1);
  Pool pool_{*be_};
};

TEST_F(GoldenLayers, s001_ce_losses) {
  const double p[] = {0.52, 0.55, 0.61, 0.62, 0.58};
  const double want[] = {0.6539264674066639, 0.5978370007556204, 0.4942963218147801, 0.4780358009429998,
                         0.5447271754416722};
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(loss_of({std::log(p[i]), std::log(1 - p[i])}, 0), want[i], 2e-6 * want[i]);
}

TEST_F(GoldenLayers, s004_initial_loss) {
  EXPECT_NEAR(loss_of({0, 0}, 1), 0.6931471805599453, 2e-6);
  EXPECT_NEAR(loss_of(std::vector<double>(10, 0.0), 3), 2.302585092994046, 2e-6 * 2.3);
}

// The gradient too: s002_numpy_example's p - onehot.
TEST_F(GoldenLayers, s002_numpy_example) {
  const double want[] = {-0.37146828078823757, 0.23122389762214907, 0.14024438316608848};
  EXPECT_NEAR(loss_of({2, 1, 0.5}, 0), 0.46436878410794485, 2e-6);
  const Tensor z = tensor_of(*be_, {1, 3}, DType::f32, {2, 1, 0.5});
  const Tensor labels = tensor_of(*be_, {1}, DType::i32, {0});
  const Tensor loss = pool_.empty({1}, DType::f32), stats = pool_.empty({1, 2}, DType::f32);
  const Tensor dz = pool_.empty({1, 3}, DType::f32);
  be_->softmax_loss(loss, stats, dz, z, labels, 0, 1);
  for (size_t c = 0; c < 3; ++c) EXPECT_NEAR(download(*be_, dz)[c], want[c], 2e-6);
}

TEST_F(GoldenLayers, s001_param_count) {
  ParamStore store;
  const Linear hidden(Scope{store, "hidden"}, 1000, 100, true), out(Scope{store, "out"}, 100, 2);
  EXPECT_EQ(store.count(), 100302);  // the weights alone: 100200
}

TEST_F(GoldenLayers, s004_resnet_depth_and_params) {
  const std::pair<const char*, int64_t> a[] = {
      {"resnet20", 269722}, {"resnet32", 464154}, {"resnet44", 658586}, {"resnet56", 853018}, {"resnet110", 1727962}};
  const int64_t b[] = {272474, 466906, 661338, 855770, 1730714};
  for (int i = 0; i < 5; ++i)
    for (const char shortcut : {'A', 'B'}) {
      ParamStore store;
      ModelOptions options;
      options.shortcut = shortcut;
      make_model(a[i].first, store, options);
      EXPECT_EQ(store.count(), shortcut == 'A' ? a[i].second : b[i]) << a[i].first;
    }
}

// One value per channel: its deviation from the mean says nothing, and training on it is refused as PyTorch does.
TEST_F(GoldenLayers, s001_bn_batch1) {
  ParamStore store;
  BatchNorm2d norm(Scope{store, "bn"}, 1);
  store.seal(*be_, 0);
  Pass train{*be_, pool_, nullptr, true};
  EXPECT_THROW(norm.forward(train, tensor_of(*be_, {1, 1, 1, 1}, DType::f32, {7})), Error);
  // A convolution's one image has height x width values: fine.
  const std::vector<double> y = download(*be_, norm.forward(train, tensor_of(*be_, {1, 1, 2, 1}, DType::f32, {7, 7})));
  EXPECT_EQ(y[0], 0);
}

}  // namespace
}  // namespace linnet
