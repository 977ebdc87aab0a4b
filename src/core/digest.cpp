#include "src/core/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include "linnet/error.h"

namespace linnet {

struct Sha256::State {
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context{EVP_MD_CTX_new(), EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  EVP_MD_CTX* context = state_->context.get();
  require(context && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1, "OpenSSL offers no SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::update(std::string_view bytes) {
  require(EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size()) == 1, "OpenSSL's SHA-256 failed");
}

std::string Sha256::finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  require(EVP_DigestFinal_ex(state_->context.get(), digest, &length) == 1, "OpenSSL's SHA-256 failed");
  return fmt::format("{:02x}", fmt::join(digest, digest + length, ""));
}

std::string sha256(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes);
  return digest.finish();
}

namespace {
std::string digits(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }
}  // namespace

struct Xxh3::State {
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state{XXH3_createState(), XXH3_freeState};
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {
  require(state_->state && XXH3_128bits_reset(state_->state.get()) == XXH_OK, "xxHash offers no XXH3");
}

Xxh3::~Xxh3() = default;

void Xxh3::update(std::string_view bytes) {
  require(XXH3_128bits_update(state_->state.get(), bytes.data(), bytes.size()) == XXH_OK, "xxHash's XXH3 failed");
}

std::string Xxh3::digest() const { return digits(XXH3_128bits_digest(state_->state.get())); }

std::string xxh3(std::string_view bytes) { return digits(XXH3_128bits(bytes.data(), bytes.size())); }

}  // namespace linnet
