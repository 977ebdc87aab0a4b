#include "picture_html.h"

#include <fmt/format.h>

#include <algorithm>

#include "linnet/dataset.h"
#include "linnet/text.h"

namespace linnet {

namespace {

std::string image_tag(const std::vector<uint8_t>& rgb, int size, const std::string& what) {
  return fmt::format("<figure><img src=\"data:image/png;base64,{}\" alt=\"{}\"><figcaption>{}</figcaption></figure>\n",
                     base64(to_png(rgb.data(), size, size, 3)), what, what);
}

std::vector<uint8_t> in_colour(const std::vector<uint8_t>& pixels, int channels) {
  if (channels == 3) return pixels;
  std::vector<uint8_t> rgb;
  for (const uint8_t v : pixels) rgb.insert(rgb.end(), 3, v);
  return rgb;
}

// The picture in grey, darkened, under a map from black through red and yellow to white.
std::vector<uint8_t> heat(const std::vector<uint8_t>& rgb, const std::vector<float>& map) {
  std::vector<uint8_t> out(rgb.size());
  for (size_t i = 0; i < map.size(); ++i) {
    const float grey = (0.299f * rgb[i * 3] + 0.587f * rgb[i * 3 + 1] + 0.114f * rgb[i * 3 + 2]) * 0.4f, v = map[i];
    for (size_t c = 0; c < 3; ++c) {
      const float warm = 255 * std::clamp(3 * v - float(c), 0.f, 1.f), share = std::min(1.f, 0.25f + v);
      out[i * 3 + c] = uint8_t((1 - share) * grey + share * (warm > 0 ? warm : grey));
    }
  }
  return out;
}

}  // namespace

void PicturePage::add(const Entry& e, int size, int channels) {
  const std::vector<uint8_t> rgb = in_colour(e.pixels, channels);
  body_ += fmt::format("<section>\n<h2>{}</h2>\n{}", escaped_markup(escaped(e.name, 1000)),
                       image_tag(rgb, size, "as the net saw it"));
  body_ += image_tag(heat(rgb, e.saliency.gradient_input), size, "gradient &times; input");
  if (!e.saliency.grad_cam.empty()) body_ += image_tag(heat(rgb, e.saliency.grad_cam), size, "Grad-CAM");
  body_ += "<table>\n";
  for (const auto& [label, p] : e.top)
    body_ += fmt::format("<tr><td>{}</td><td><meter value=\"{:.4f}\"></meter></td><td>{:.1f}&nbsp;%</td></tr>\n",
                         escaped_markup(escaped(label, 1000)), p, 100 * p);
  body_ += "</table>\n</section>\n";
}

std::string PicturePage::text(const std::string& title) const {
  return fmt::format(
      "{2}\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{0}</title>\n"
      "<style>body{{font:15px sans-serif;margin:2em;max-width:60em}}figure{{display:inline-block;margin:0 1em 0 0}}"
      "img{{width:192px;height:192px;image-rendering:pixelated}}figcaption{{color:#555;font-size:13px}}"
      "h2{{font-size:16px;overflow-wrap:anywhere}}td{{padding-right:1em}}meter{{width:12em}}</style>\n"
      "<h1>{0}</h1>\n<p>The maps are of the first class: where a change of the picture changes its "
      "logit.</p>\n{1}</html>\n",
      escaped_markup(escaped(title, 1000)), body_, kBeginning);
}

}  // namespace linnet
