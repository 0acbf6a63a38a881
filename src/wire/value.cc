#include "wire/value.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace skate::wire {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the layout is written as the memory of this machine");

constexpr uint8_t kMagic = 0xD5;
constexpr uint8_t kVersion = 1;

struct Header {
  uint8_t magic;
  uint8_t format;
  uint8_t version;
  uint8_t flags;
  uint32_t n_buffers;
  uint32_t n_refs;
  uint32_t n_owners;
  uint64_t inband_bytes;
  uint64_t total_bytes;
};
static_assert(sizeof(Header) == kValueHeaderBytes);

constexpr size_t align_up(size_t offset) { return (offset + kValueAlign - 1) & ~(kValueAlign - 1); }

/// Where the in-band bytes begin. The counts are 32 bits wide, so that this cannot overflow.
constexpr size_t inband_offset(size_t n_owners, size_t n_refs, size_t n_buffers) {
  return kValueHeaderBytes + n_owners * sizeof(Address) + n_refs * sizeof(ValueRef) +
         n_buffers * sizeof(uint64_t);
}

uint64_t load_u64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

Error corrupt(const char* what) { return Error{ErrorCode::kCorrupt, std::string("value: ") + what}; }

uint8_t* put(uint8_t* out, const void* data, size_t bytes, CopyFunction copy) {
  if (bytes == 0) return out;
  if (copy != nullptr && bytes >= kLargePartBytes) {
    copy(out, data, bytes);
  } else {
    std::memcpy(out, data, bytes);
  }
  return out + bytes;
}

void put_text(std::vector<uint8_t>& out, std::string_view text) {
  uint32_t size = static_cast<uint32_t>(text.size());
  const uint8_t* size_bytes = reinterpret_cast<const uint8_t*>(&size);
  out.insert(out.end(), size_bytes, size_bytes + sizeof(size));
  out.insert(out.end(), text.begin(), text.end());
}

bool take_u32(std::span<const uint8_t>& in, uint32_t& value) {
  if (in.size() < sizeof(value)) return false;
  std::memcpy(&value, in.data(), sizeof(value));
  in = in.subspan(sizeof(value));
  return true;
}

bool take_text(std::span<const uint8_t>& in, std::string& text) {
  uint32_t size;
  if (!take_u32(in, size) || size > in.size()) return false;
  text.assign(reinterpret_cast<const char*>(in.data()), size);
  in = in.subspan(size);
  return true;
}

}  // namespace

size_t ValueParts::flat_size() const {
  size_t size = inband_offset(owners.size(), refs.size(), buffers.size()) + inband.size();
  for (const auto& buffer : buffers) size = align_up(size) + buffer.size();
  return size;
}

void ValueParts::write_to(uint8_t* out, CopyFunction copy) const {
  SKATE_ASSERT(refs.size() <= UINT32_MAX, "too many refs in one value");
  SKATE_ASSERT(buffers.size() <= UINT32_MAX, "too many buffers in one value");
  Header header{kMagic,
                static_cast<uint8_t>(format),
                kVersion,
                0,
                static_cast<uint32_t>(buffers.size()),
                static_cast<uint32_t>(refs.size()),
                static_cast<uint32_t>(owners.size()),
                inband.size(),
                flat_size()};
  uint8_t* const start = out;
  out = put(out, &header, sizeof(header), nullptr);
  out = put(out, owners.data(), owners.size_bytes(), nullptr);
  out = put(out, refs.data(), refs.size_bytes(), nullptr);
  for (const auto& buffer : buffers) {
    uint64_t size = buffer.size();
    out = put(out, &size, sizeof(size), nullptr);
  }
  out = put(out, inband.data(), inband.size(), copy);
  for (const auto& buffer : buffers) {
    size_t offset = static_cast<size_t>(out - start);
    size_t aligned = align_up(offset);
    std::memset(out, 0, aligned - offset);
    out = put(start + aligned, buffer.data(), buffer.size(), copy);
  }
}

std::vector<uint8_t> ValueParts::to_bytes() const {
  std::vector<uint8_t> bytes(flat_size());
  write_to(bytes.data());
  return bytes;
}

Result<ValueView> parse_value(std::span<const uint8_t> bytes) {
  if (bytes.size() < kValueHeaderBytes) return corrupt("shorter than its header");
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic) return corrupt("wrong first byte");
  if (header.version != kVersion) return corrupt("unknown version");
  if (header.flags != 0) return corrupt("unknown flags");
  if (header.format > kValueFormatMax) return corrupt("unknown format");
  if (header.total_bytes != bytes.size()) return corrupt("its size is not what its header says");
  size_t inband_at = inband_offset(header.n_owners, header.n_refs, header.n_buffers);
  if (inband_at > bytes.size()) return corrupt("its tables do not fit");
  if (header.inband_bytes > bytes.size() - inband_at) return corrupt("its in-band bytes do not fit");

  const uint8_t* refs_at = bytes.data() + kValueHeaderBytes + header.n_owners * sizeof(Address);
  for (uint32_t i = 0; i < header.n_refs; ++i) {
    uint32_t owner;
    std::memcpy(&owner, refs_at + i * sizeof(ValueRef) + ObjectId::kSize, sizeof(owner));
    if (owner >= header.n_owners) return corrupt("a ref without an owner");
  }

  size_t offset = inband_at + header.inband_bytes;
  const uint8_t* sizes_at = bytes.data() + inband_at - header.n_buffers * sizeof(uint64_t);
  for (uint32_t i = 0; i < header.n_buffers; ++i) {
    uint64_t size = load_u64(sizes_at + i * sizeof(uint64_t));
    size_t start = align_up(offset);
    if (start > bytes.size() || size > bytes.size() - start) return corrupt("a buffer does not fit");
    offset = start + size;
  }
  if (offset != bytes.size()) return corrupt("bytes are left over");

  ValueView view;
  view.start_ = bytes.data();
  view.total_bytes_ = bytes.size();
  view.inband_at_ = inband_at;
  view.inband_bytes_ = header.inband_bytes;
  view.n_buffers_ = header.n_buffers;
  view.n_refs_ = header.n_refs;
  view.n_owners_ = header.n_owners;
  view.format_ = static_cast<ValueFormat>(header.format);
  return view;
}

Address ValueView::owner(uint32_t index) const {
  SKATE_ASSERT(index < n_owners_, "owner index of a value");
  const uint8_t* at = start_ + kValueHeaderBytes + index * sizeof(Address);
  return Address{WorkerId::from_bytes(at), NodeId::from_bytes(at + WorkerId::kSize)};
}

ValueRef ValueView::ref(uint32_t index) const {
  SKATE_ASSERT(index < n_refs_, "ref index of a value");
  const uint8_t* at = start_ + kValueHeaderBytes + n_owners_ * sizeof(Address) + index * sizeof(ValueRef);
  ValueRef ref;
  ref.id = ObjectId(ObjectId::from_bytes(at));
  std::memcpy(&ref.owner, at + ObjectId::kSize, sizeof(ref.owner));
  // The bytes may have changed since they were parsed.
  if (ref.owner >= n_owners_) ref.owner = 0;
  return ref;
}

std::vector<std::span<const uint8_t>> ValueView::buffers() const {
  std::vector<std::span<const uint8_t>> found;
  found.reserve(n_buffers_);
  const uint8_t* sizes_at = start_ + inband_at_ - n_buffers_ * sizeof(uint64_t);
  size_t offset = inband_at_ + inband_bytes_;
  for (uint32_t i = 0; i < n_buffers_; ++i) {
    // Clamped, since the bytes may have changed since they were parsed.
    size_t start = std::min(align_up(offset), total_bytes_);
    size_t size = std::min<uint64_t>(load_u64(sizes_at + i * sizeof(uint64_t)), total_bytes_ - start);
    found.emplace_back(start_ + start, size);
    offset = start + size;
  }
  return found;
}

std::span<const uint8_t> ValueView::first_buffer() const {
  if (n_buffers_ == 0) return {};
  size_t start = std::min(align_up(inband_at_ + inband_bytes_), total_bytes_);
  size_t size =
      std::min<uint64_t>(load_u64(start_ + inband_at_ - n_buffers_ * sizeof(uint64_t)), total_bytes_ - start);
  return {start_ + start, size};
}

std::vector<uint8_t> encode_system_error(std::string_view kind,
                                         const std::map<std::string, std::string>& fields) {
  std::vector<uint8_t> inband;
  put_text(inband, kind);
  uint32_t count = static_cast<uint32_t>(fields.size());
  const uint8_t* count_bytes = reinterpret_cast<const uint8_t*>(&count);
  inband.insert(inband.end(), count_bytes, count_bytes + sizeof(count));
  for (const auto& [name, text] : fields) {
    put_text(inband, name);
    put_text(inband, text);
  }
  ValueParts parts;
  parts.format = ValueFormat::kSystemError;
  parts.inband = inband;
  return parts.to_bytes();
}

Result<SystemError> parse_system_error(std::span<const uint8_t> inband) {
  SystemError error;
  uint32_t count;
  if (!take_text(inband, error.kind)) return corrupt("a system error without a kind");
  if (!take_u32(inband, count)) return corrupt("a system error without fields");
  for (uint32_t i = 0; i < count; ++i) {
    std::string name;
    std::string text;
    if (!take_text(inband, name)) return corrupt("a cut-off field name");
    if (!take_text(inband, text)) return corrupt("a cut-off field");
    if (!error.fields.emplace(std::move(name), std::move(text)).second) return corrupt("a field twice");
  }
  if (!inband.empty()) return corrupt("bytes are left over in a system error");
  return error;
}

}  // namespace skate::wire
