// Ten classes of pictures for tests, first steps and machines without a network. The class is a shape; all else about a
// picture is random. Integers only: a float expression may round differently with and without fused multiply-add, and
// these pictures must have the same bits on every machine.
#include <algorithm>
#include <array>

#include "kernels/rng.h"
#include "linnet/dataset.h"
#include "linnet/error.h"

namespace linnet {
namespace {

constexpr int kClasses = 10;
constexpr int kUnit = 1024;  // a shape's radius in its own coordinates
constexpr int kSub = 16;     // places and radii are in sixteenths of a pixel

struct Point {
  int x, y;
};

// Whether (u, v), in the shape's own coordinates, lies inside. Every shape keeps its class when mirrored, because its
// angle is random and training may flip pictures.
bool inside(int shape, int u, int v) {
  const int au = std::abs(u), av = std::abs(v), r2 = u * u + v * v;
  const auto square = [](int x) { return x * x; };
  switch (shape) {
    case 0:
      return r2 <= square(kUnit);  // disc
    case 1:
      return r2 <= square(kUnit) && r2 >= square(560);  // ring
    case 2:
      return std::max(au, av) <= 820;  // square
    case 3:
      return std::max(au, av) <= 850 && std::max(au, av) >= 460;  // frame
    case 4:
      return v >= -512 && 1536 * au + 887 * v <= 887 * kUnit;  // triangle
    case 5:
      return std::min(au, av) <= 270 && std::max(au, av) <= kUnit;  // cross
    case 6:
      return r2 <= square(kUnit) && square(u - 430) + v * v >= square(760);  // crescent
    case 7:
      return au <= 920 && av >= 260 && av <= 800;  // bars
    case 8:
      return v >= -350 && square(u) + square(v + 350) <= square(1150);  // half disc
    default: {  // star: the points outside at most one of the five lines that join every second tip
      constexpr std::array<Point, 5> normals = {{{0, 1024}, {974, 316}, {602, -828}, {-602, -828}, {-974, 316}}};
      int outside = 0;
      for (const Point n : normals) outside += n.x * u + n.y * v > 370 * kUnit;
      return outside <= 1 && r2 <= square(1200);
    }
  }
}

// 2^14 sin(2 pi i / 64), from a table of the first quarter.
int sine(int i) {
  constexpr std::array<int, 17> quarter = {0,     1606,  3196,  4756,  6270,  7723,  9102,  10394, 11585,
                                           12665, 13623, 14449, 15137, 15679, 16069, 16305, 16384};
  i &= 63;
  const int rising = i & 31;
  const int value = quarter[rising <= 16 ? rising : 32 - rising];
  return i < 32 ? value : -value;
}
int cosine(int i) { return sine(i + 16); }

// The random numbers of one picture, in a fixed order. Shape and colour draws come from one stream, noise from another.
class Dice {
 public:
  Dice(uint64_t seed, Split split, int64_t index)
      : seed_(seed), index_(uint64_t(index)), split_(split == Split::test) {}
  // Uniform in low..high.
  int roll(int low, int high) {
    if (used_ == 4) {
      words_ = random4(seed_, Draw::synthetic, index_, 2 * split_, drawn_++);
      used_ = 0;
    }
    return low + int(below(words_.v[used_++], uint32_t(high - low + 1)));
  }
  Random4 noise(int pixel) const { return random4(seed_, Draw::synthetic, index_, 2 * split_ + 1, uint32_t(pixel)); }

 private:
  uint64_t seed_, index_;
  uint32_t split_, drawn_ = 0;
  int used_ = 4;
  Random4 words_{};
};

// A flat colour, or two that alternate in stripes of `period` sixteenths of a pixel across direction `angle`.
struct Paint {
  std::array<int, 3> even, odd;
  int angle, period;
  const std::array<int, 3>& at(int x, int y) const {
    const int along = (x * cosine(angle) + y * sine(angle)) >> 14;
    return (along + (1 << 20)) / period % 2 ? odd : even;
  }
};

Paint random_paint(Dice& dice, const std::array<int, 3>& colour) {
  Paint paint{colour, colour, dice.roll(0, 63), dice.roll(20, 64)};
  const int depth = dice.roll(0, 1) * dice.roll(15, 40);
  for (int c = 0; c < 3; ++c) paint.odd[c] += dice.roll(-depth, depth);
  return paint;
}

std::array<int, 3> random_colour(Dice& dice) { return {dice.roll(30, 225), dice.roll(30, 225), dice.roll(30, 225)}; }

// A picture under way: a value for every pixel and channel, not yet held to 0..255.
struct Canvas {
  int size;
  std::vector<int> value;

  // Blends a shape in, with edges smoothed over 2x2 points a pixel. Centre and radius are in sixteenths of a pixel.
  void draw(int shape, Point centre, int radius, int angle, const Paint& paint) {
    const int reach = radius * 5 / 4 + kSub;  // a half disc reaches furthest
    const int x0 = std::max(0, (centre.x - reach) / kSub), x1 = std::min(size - 1, (centre.x + reach) / kSub);
    const int y0 = std::max(0, (centre.y - reach) / kSub), y1 = std::min(size - 1, (centre.y + reach) / kSub);
    const int s = sine(angle), c = cosine(angle);
    for (int y = y0; y <= y1; ++y)
      for (int x = x0; x <= x1; ++x) {
        int hits = 0;
        for (const Point point : {Point{4, 4}, Point{12, 4}, Point{4, 12}, Point{12, 12}}) {
          const int dx = x * kSub + point.x - centre.x, dy = y * kSub + point.y - centre.y;
          // Turned, then scaled so that the radius becomes kUnit = 2^10: 2^14 of the sine leaves a shift by 4.
          const int u = ((dx * c + dy * s) >> 4) / radius, v = ((dy * c - dx * s) >> 4) / radius;
          hits += inside(shape, u, v);
        }
        if (hits == 0) continue;
        const auto& colour = paint.at(x * kSub, y * kSub);
        for (int k = 0; k < 3; ++k) {
          int& old = value[(y * size + x) * 3 + k];
          old += (colour[k] - old) * hits / 4;
        }
      }
  }
};

void draw_picture(Canvas& canvas, int label, Dice dice, uint8_t* pixels) {
  const int size = canvas.size, full = size * kSub;
  const auto scaled = [&](int thirty_seconds) { return full * thirty_seconds / 512; };  // of a 32-pixel picture's 1/16

  // Background: a striped or flat colour under a slope of light.
  const std::array<int, 3> ground = random_colour(dice);
  const Paint back = random_paint(dice, ground);
  const int slope_x = dice.roll(-40, 40), slope_y = dice.roll(-40, 40);
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x)
      for (int c = 0; c < 3; ++c)
        canvas.value[(y * size + x) * 3 + c] =
            back.at(x * kSub, y * kSub)[c] + (slope_x * (2 * x - size) + slope_y * (2 * y - size)) / (2 * size);

  // Clutter: small shapes of every class, some of them in front of the picture's own shape.
  const auto clutter = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const Paint paint = random_paint(dice, random_colour(dice));
      const Point centre{dice.roll(0, full - 1), dice.roll(0, full - 1)};
      canvas.draw(dice.roll(0, kClasses - 1), centre, std::max(1, dice.roll(scaled(24), scaled(60))), dice.roll(0, 63),
                  paint);
    }
  };
  clutter(dice.roll(2, 6));

  // The shape, in a colour that differs from the ground's in every channel, up or down.
  std::array<int, 3> colour;
  for (int c = 0; c < 3; ++c) colour[c] = (ground[c] + dice.roll(50, 206)) & 255;
  const int radius = std::max(1, dice.roll(scaled(95), scaled(190)));
  const int room = std::max(0, full / 2 - radius);
  const Point centre{full / 2 + dice.roll(-room, room), full / 2 + dice.roll(-room, room)};
  const Paint paint = random_paint(dice, colour);
  canvas.draw(label, centre, radius, dice.roll(0, 63), paint);
  clutter(dice.roll(0, 2));

  // Noise: the sum of four bytes is nearly normal, with a deviation of 148; `strength` brings it to 5 to 24 grey
  // levels.
  const int strength = dice.roll(5, 24);
  for (int i = 0; i < size * size; ++i) {
    const Random4 word = dice.noise(i);
    for (int c = 0; c < 3; ++c) {
      const uint32_t w = word.v[c];
      const int sum = int(w & 255) + int(w >> 8 & 255) + int(w >> 16 & 255) + int(w >> 24) - 510;
      pixels[i * 3 + c] = uint8_t(std::clamp(canvas.value[i * 3 + c] + sum * strength / 148, 0, 255));
    }
  }
}

}  // namespace

Images make_synthetic(int64_t count, Split split, uint64_t seed, int size) {
  if (count < 1 || count > 10'000'000) fail(Exit::usage, "data.samples: expected 1 to 10000000 images, got {}", count);
  if (size < 4 || size > 224) fail(Exit::usage, "data.image_size: expected 4 to 224 pixels, got {}", size);
  Images images{.height = size, .width = size, .channels = 3, .classes = kClasses};
  images.class_names = {"disc",  "ring",     "square", "frame",     "triangle",
                        "cross", "crescent", "bars",   "half-disc", "star"};
  images.pixels.resize(size_t(count) * images.image_bytes());
  images.labels.resize(size_t(count));
  Canvas canvas{size, std::vector<int>(size_t(images.image_bytes()))};
  for (int64_t i = 0; i < count; ++i) {
    images.labels[i] = int32_t(i % kClasses);
    draw_picture(canvas, images.labels[i], Dice(seed, split, i), images.pixels.data() + i * images.image_bytes());
  }
  return images;
}

}  // namespace linnet
