// Moving averages against worked examples, computed in float64 elsewhere; the last against pandas.
#include "linnet/average.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace linnet {
namespace {

using Doubles = std::vector<double>;

const Doubles kDays = {18, 23, 19, 20, 17, 21, 19, 18, 22, 20};

void expect_close(const Doubles& got, const Doubles& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12 * std::abs(want[i])) << i;
}

template <class Average>
Doubles averages(Average average, const Doubles& values) {
  Doubles out;
  for (const double x : values) out.push_back(average.update(x));
  return out;
}

TEST(Ewa, FromZero) {
  expect_close(averages(Ewa(0.9, EwaStart::zero), kDays),
               {1.7999999999999996, 3.919999999999999, 5.427999999999999, 6.885199999999999, 7.89668, 9.207011999999999,
                10.186310799999998, 10.967679719999998, 12.070911747999997, 12.863820573199998});
  expect_close(averages(Ewa(0.98, EwaStart::zero), kDays),
               {0.3600000000000003, 0.8128000000000006, 1.176544000000001, 1.5530131200000012, 1.8619528576000015,
                2.244713800448002, 2.5798195244390425, 2.888223133950262, 3.270458671271257, 3.605049497845832});
  // The weights of the last three values.
  Ewa e(0.9, EwaStart::zero);
  expect_close({e.update(1), e.update(0), e.update(0)}, {0.1, 0.09000000000000001, 0.08100000000000002});
}

TEST(Ewa, FromTheFirstValue) {
  expect_close(averages(Ewa(0.9, EwaStart::first), {18, 23, 19, 20, 17}), {18.0, 18.5, 18.55, 18.695, 18.5255});
  expect_close(averages(Ewa(0.5, EwaStart::first), kDays),
               {18.0, 20.5, 19.75, 19.875, 18.4375, 19.71875, 19.359375, 18.6796875, 20.33984375, 20.169921875});
}

TEST(Ewa, Corrected) {
  expect_close(averages(Ewa(0.5), kDays),
               {18.0, 21.333333333333332, 20.0, 20.0, 18.451612903225808, 19.746031746031747, 19.37007874015748,
                18.68235294117647, 20.344422700587085, 20.172043010752688});
  expect_close(averages(Ewa(0.9), kDays),
               {18.0, 20.63157894736842, 20.029520295202957, 20.020936318697295, 19.283240946497035, 19.649632170121585,
                19.5251107382724, 19.257327958237486, 19.70505302780197, 19.750337414249014});
  expect_close(averages(Ewa(0.98), kDays),
               {18.0, 20.5252525252525, 20.006529723847084, 20.004847495563663, 19.379353653923726, 19.663285003989035,
                19.562691610844944, 19.35326742685524, 19.671667059492577, 19.707564722920395});
  expect_close(
      averages(Ewa(0.9), {0.023, -0.018, 0.031, 0.012, -0.008, 0.025, 0.019, -0.005, 0.028, 0.015}),
      {0.023, 0.0014210526315789492, 0.012335793357933581, 0.012238150625181738, 0.007296109985104149,
       0.011074479414545445, 0.012593642437624007, 0.00950450643939219, 0.012523786912944923, 0.012903969796409618});
}

// A constant stays what it is, however long beta's memory; the average of one that starts at zero is mu (1 - beta^t).
TEST(Ewa, OfAConstant) {
  Ewa corrected(0.999), zero(0.9, EwaStart::zero);
  Doubles mean;
  for (int t = 1; t <= 10; ++t) {
    EXPECT_NEAR(corrected.update(20), 20, 20 * 1e-12);
    zero.update(20);
    if (t <= 3 || t == 5 || t == 10) mean.push_back(zero.value());
  }
  expect_close(mean, {1.9999999999999996, 3.799999999999999, 5.419999999999998, 8.190199999999999, 13.026431198});
}

TEST(Ewa, WeightsAndWindow) {
  const std::vector<int64_t> at = {1, 5, 10, 100, 500, 1000};
  const std::vector<std::pair<double, Doubles>> corrections = {
      {0.5, {2.0, 1.032258064516129, 1.0009775171065494, 1.0, 1.0, 1.0}},
      {0.9, {10.000000000000002, 2.4419428096993974, 1.5353399327876296, 1.0000265621044142, 1.0, 1.0}},
      {0.98,
       {49.99999999999996, 10.408079654016106, 5.466655793407689, 1.1528966404488836, 1.000041025668182,
        1.0000000016829673}},
      {0.999,
       {999.9999999999991, 200.40040019996033, 100.45082541138463, 10.503335278386363, 2.5405145048639173,
        1.5815163121946023}}};
  for (const auto& [beta, want] : corrections) {
    Ewa e(beta);
    Doubles got;
    for (int64_t t = 1; t <= 1000; ++t) {
      e.update(1);
      if (std::ranges::count(at, t)) got.push_back(1 / e.weight_sum());
    }
    expect_close(got, want);
  }
  Doubles windows;
  for (const double beta : {0.5, 0.9, 0.95, 0.98, 0.99, 0.999}) windows.push_back(Ewa(beta).window());
  expect_close(windows,
               {2.0, 10.000000000000002, 19.999999999999982, 49.99999999999996, 99.99999999999991, 999.9999999999991});
}

TEST(Ewa, NothingYetIsNaN) {
  for (const EwaStart start : {EwaStart::zero, EwaStart::first, EwaStart::corrected})
    EXPECT_TRUE(std::isnan(Ewa(0.9, start).value()));
  EXPECT_TRUE(std::isnan(MovingMean(3).value()));
}

TEST(Ewa, GoesOnWhereItWasSaved) {
  for (const EwaStart start : {EwaStart::zero, EwaStart::first, EwaStart::corrected}) {
    Ewa one(0.9, start), other(0.9, start);
    one.update(3);
    one.update(5);
    other.restore(one.state());
    EXPECT_EQ(other.value(), one.value());
    EXPECT_EQ(other.update(7), one.update(7));
  }
}

// pandas: Series.ewm(alpha).mean(), adjust = True and False; alpha is 1 - beta.
TEST(Ewa, Pandas) {
  const Doubles closes = {9.71, 9.8, 9.95, 9.84, 9.855};
  expect_close(averages(Ewa(1 - 0.9), closes),
               {9.71, 9.791818181818181, 9.934324324324322, 9.849423942394239, 9.854442444424446});
  expect_close(averages(Ewa(1 - 0.9, EwaStart::first), closes), {9.71, 9.791, 9.9341, 9.849409999999999, 9.854441});
  expect_close(averages(Ewa(1 - 0.3), closes),
               {9.71, 9.762941176470589, 9.848356164383562, 9.84505724437426, 9.848642674263461});
}

TEST(MovingMean, OfTheLastThree) {
  Doubles got;
  MovingMean mean(3);
  for (const double x : kDays) {
    mean.update(x);
    if (mean.full()) got.push_back(mean.value());
  }
  expect_close(got, {20.0, 20.666666666666668, 18.666666666666668, 19.333333333333332, 19.0, 19.333333333333332,
                     19.666666666666668, 20.0});
}

// While they are fewer than n: the mean of all.
TEST(MovingMean, OfAllSoFar) {
  expect_close(averages(MovingMean(100), kDays), {18.0, 20.5, 20.0, 20.0, 19.4, 19.666666666666668, 19.571428571428573,
                                                  19.375, 19.666666666666668, 19.7});
}

}  // namespace
}  // namespace linnet
