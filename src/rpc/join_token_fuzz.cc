// Any text as a join token: it is refused, or it is the text of exactly that token.
#include <string>

#include "base/assert.h"
#include "rpc/join.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace skate;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<rpc::JoinToken> token = rpc::parse_join_token(text);
  if (token.ok()) {
    const std::string again = rpc::to_text(*token);
    SKATE_ASSERT(again.size() <= text.size(), "only white space is dropped");
    const Result<rpc::JoinToken> same = rpc::parse_join_token(again);
    SKATE_ASSERT(same.ok(), "a token's text is a token");
    SKATE_ASSERT(*same == *token, "and the same one");
  }
  // Any 52 bytes with the right checksum get as far as the fields.
  rpc::JoinToken made;
  uint8_t* const parts[] = {made.id.data(), reinterpret_cast<uint8_t*>(&made.expires_unix_s),
                            made.authority.data(), made.secret.data()};
  const size_t sizes[] = {made.id.size(), sizeof(made.expires_unix_s), made.authority.size(),
                          made.secret.size()};
  for (size_t part = 0; part < 4; ++part) {
    for (size_t i = 0; i < sizes[part] && size > 0; ++i, ++data, --size) parts[part][i] = *data;
  }
  const Result<rpc::JoinToken> parsed = rpc::parse_join_token(rpc::to_text(made));
  if (parsed.ok()) SKATE_ASSERT(*parsed == made, "what was written is read");
  return 0;
}
