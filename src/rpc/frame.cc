#include "rpc/frame.h"

#include <cstring>

namespace skate::rpc {
namespace {

template <class T>
void put(char*& out, T value) {
  std::memcpy(out, &value, sizeof(value));
  out += sizeof(value);
}
template <class T>
T take(const char*& in) {
  T value;
  std::memcpy(&value, in, sizeof(value));
  in += sizeof(value);
  return value;
}

}  // namespace

void append_frame(std::string& out, FrameHeader header, std::string_view body) {
  SKATE_ASSERT(body.size() <= kFrameBytesMax, "a frame's size is checked before it is made");
  char bytes[FrameHeader::kBytes];
  char* end = bytes;
  put(end, static_cast<uint32_t>(body.size()));
  put(end, static_cast<uint8_t>(header.kind));
  put(end, header.code);
  put(end, header.method);
  put(end, header.id);
  put(end, header.timeout_ms);
  out.append(bytes, sizeof(bytes));
  out.append(body);
}

Result<std::optional<Frame>> FrameReader::next() {
  if (buffered_bytes() < FrameHeader::kBytes) return std::optional<Frame>();
  const char* in = buffer_.data() + begin_;
  FrameHeader header;
  header.length = take<uint32_t>(in);
  header.kind = static_cast<FrameKind>(take<uint8_t>(in));
  header.code = take<uint8_t>(in);
  header.method = take<uint16_t>(in);
  header.id = take<uint64_t>(in);
  header.timeout_ms = take<uint32_t>(in);
  if (header.length > length_max_)
    return Error{ErrorCode::kCorrupt, "a frame of " + std::to_string(header.length) +
                                          " bytes exceeds the limit of " + std::to_string(length_max_)};
  if (header.kind < FrameKind::kRequest || header.kind > FrameKind::kNotify)
    return Error{ErrorCode::kCorrupt,
                 "a frame of unknown kind " + std::to_string(static_cast<int>(header.kind))};
  if (buffered_bytes() - FrameHeader::kBytes < header.length) return std::optional<Frame>();
  Frame frame{header, std::string(in, header.length)};
  begin_ += FrameHeader::kBytes + header.length;
  if (begin_ == buffer_.size()) {
    begin_ = 0;
    if (buffer_.capacity() > (1u << 20)) {
      buffer_ = std::string();  // one large frame must not hold its memory for ever
    } else {
      buffer_.clear();
    }
  } else if (begin_ > (1u << 16) && begin_ > buffer_.size() / 2) {
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  return std::optional<Frame>(std::move(frame));
}

Result<std::string> reply_result(Frame reply) {
  if (reply.header.code == 0) return std::move(reply.body);
  const int code = reply.header.code - 1;
  if (code > static_cast<int>(ErrorCode::kIo))
    return Error{ErrorCode::kCorrupt, "a reply with the unknown error " + std::to_string(code)};
  return Error{static_cast<ErrorCode>(code), std::move(reply.body)};
}

}  // namespace skate::rpc
