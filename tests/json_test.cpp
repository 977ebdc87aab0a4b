// The strict JSON reader: what it takes, and every rule broken once.
#include "src/core/json.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/temp_dir.h"

namespace linnet {
namespace {

// What reading `text` says; empty: it is accepted.
std::string refusal(const std::string& text) {
  try {
    parse_json(text, "some.json", Exit::data);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::data);
    EXPECT_TRUE(std::string(error.what()).starts_with("some.json: ")) << error.what();
    return error.what();
  }
  return "";
}

TEST(Json, ReadsValuesAsTheyAre) {
  const Json json = parse_json(R"( {"b":[1,-2,3.5,true,null,"\u00e9\u0000"],"a":{"x":9223372036854775807},"c":1e3} )",
                               "f", Exit::data);
  EXPECT_EQ(json.dump(),
            "{\"b\":[1,-2,3.5,true,null,\"\xc3\xa9\\u0000\"],\"a\":{\"x\":9223372036854775807},\"c\":1000.0}");
  EXPECT_TRUE(json["a"]["x"].is_number_integer());
  EXPECT_EQ(json.begin().key(), "b");  // the order of the text
  EXPECT_EQ(parse_json("-9223372036854775808", "f", Exit::data).get<int64_t>(), INT64_MIN);
  EXPECT_EQ(parse_json("[]", "f", Exit::data).size(), 0u);
}

// Found by fuzz_run after a million inputs: a class of 3e57 in predictions.json, which get<int>() casts.
TEST(Json, AWholeNumberIsOneWithinItsType) {
  const auto of = [](const char* text) { return parse_json(text, "f", Exit::data); };
  EXPECT_EQ(whole<int32_t>(of("-2147483648")), INT32_MIN);
  EXPECT_EQ(whole<int64_t>(of("9223372036854775807")), INT64_MAX);
  EXPECT_EQ(whole<uint8_t>(of("255")), 255);
  EXPECT_EQ(wholes<int32_t>(of("[1, 2]")), (std::vector<int32_t>{1, 2}));
  for (const char* text : {"3e57", "1.0", "2147483648", "-2147483649", "null", "\"1\"", "[1]", "true"})
    EXPECT_THROW(whole<int32_t>(of(text)), Json::exception) << text;
  EXPECT_THROW(whole<uint8_t>(of("-1")), Json::exception);
  for (const char* text : {"1", "{\"a\": 1}", "[1, 1e57]"})
    EXPECT_THROW(wholes<int32_t>(of(text)), Json::exception) << text;
}

TEST(Json, EveryRuleRefuses) {
  const struct {
    std::string text;
    const char* expected;
  } rules[] = {
      {"", "JSON"},
      {"{", "JSON"},
      {"[1,]", "JSON"},
      {"{\"a\":1,}", "JSON"},
      {"[1] x", "JSON"},
      {"[1][2]", "JSON"},
      {"// a\n1", "JSON"},
      {"nan", "JSON"},
      {"01", "JSON"},
      {"1e999", "JSON"},
      {"'a'", "JSON"},
      {"\"\xff\"", "JSON"},
      {"\"\xc0\x80\"", "JSON"},
      {"\"\xed\xa0\x80\"", "JSON"},
      {"\"\\ud800\"", "JSON"},
      {"\"\x1b\"", "JSON"},
      {"\xef\xbb\xbf[]", "byte order mark"},
      {std::string("[]\0", 3), "NUL at its byte 2"},
      {"[9223372036854775808]", "at /0: expected a whole number below 2^63"},
      {"[18446744073709551616]", "at /0: expected a whole number of 64 bits"},
      {"{\"a\":[1,-9223372036854775809]}", "at /a/1: expected a whole number of 64 bits"},
      {R"({"a":1,"a":2})", "got the key 'a' twice"},
      {R"({"a":1,"\u0061":2})", "got the key 'a' twice"},
      {R"({"x":[{"a":1,"b":0,"a":2}]})", "at /x/1/b: got the key 'a' twice"},
      {"{\"\\u001b\":1,\"\\u001b\":1}", "'\\x1b' twice"},
      {"[[[[[[[[[]]]]]]]]]", "at most 8 levels"},
      {std::string(1'000'000, '['), "at most 8 levels"},
      {std::string(kMaxJsonBytes, ' ') + "1", "at most 16777216 bytes"},
  };
  for (const auto& rule : rules) {
    const std::string message = refusal(rule.text);
    EXPECT_NE(message.find(rule.expected), std::string::npos) << rule.text.substr(0, 50) << " -> " << message;
    EXPECT_LE(message.size(), 600u);
  }
  // The control: their sound neighbours.
  for (const char* sound :
       {"[[[[[[[[]]]]]]]]", R"({"a":{"a":1},"b":{"a":1}})", "[9223372036854775807]", "[1e300]", "{}"})
    EXPECT_EQ(refusal(sound), "") << sound;
  EXPECT_EQ(refusal(std::string(kMaxJsonBytes - 1, ' ') + "1"), "");
}

// A lookup that compares each key with all before it would take minutes here.
TEST(Json, ManyKeysTakeLittleTime) {
  std::string text = "{\"\":0";
  for (int i = 0; i < 200'000; ++i) text += fmt::format(",\"{}\":{}", i, i);
  const Json json = parse_json(text + "}", "f", Exit::data);
  EXPECT_EQ(json.size(), 200'001u);
  EXPECT_NE(refusal(text + ",\"77\":0}"), "");
}

TEST(Json, ReadsAFile) {
  const TempDir dir;
  std::ofstream(dir / "a.json") << R"({"a":1})";
  EXPECT_EQ(read_json(dir / "a.json", Exit::data)["a"], 1);
  EXPECT_THROW(read_json(dir / "missing.json", Exit::data), Error);
  std::filesystem::resize_file(dir / "a.json", kMaxJsonBytes + 1);
  EXPECT_THROW(read_json(dir / "a.json", Exit::data), Error);
}

}  // namespace
}  // namespace linnet
