// Blob: a counted, immutable run of bytes, 64-byte aligned when large, that holds one flat value or record.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <utility>

namespace skate::worker {

class BlobPtr;

class Blob {
 public:
  static BlobPtr create(size_t size);
  static BlobPtr copy(std::span<const uint8_t> bytes);

  uint8_t* data() { return data_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }

 private:
  friend class BlobPtr;
  Blob() = default;
  std::atomic<uint32_t> count_{1};
  size_t size_ = 0;
  uint8_t* data_ = nullptr;
};

class BlobPtr {
 public:
  BlobPtr() = default;
  BlobPtr(std::nullptr_t) {}
  BlobPtr(const BlobPtr& other) : blob_(other.blob_) {
    if (blob_) blob_->count_.fetch_add(1, std::memory_order_relaxed);
  }
  BlobPtr(BlobPtr&& other) noexcept : blob_(std::exchange(other.blob_, nullptr)) {}
  BlobPtr& operator=(BlobPtr other) noexcept {
    std::swap(blob_, other.blob_);
    return *this;
  }
  ~BlobPtr() {
    if (blob_ && blob_->count_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      blob_->~Blob();
      ::operator delete(static_cast<void*>(blob_), std::align_val_t{64});
    }
  }
  Blob* get() const { return blob_; }
  Blob* operator->() const { return blob_; }
  explicit operator bool() const { return blob_ != nullptr; }

 private:
  friend class Blob;
  explicit BlobPtr(Blob* blob) : blob_(blob) {}
  Blob* blob_ = nullptr;
};

inline BlobPtr Blob::create(size_t size) {
  static_assert(sizeof(Blob) <= 64);
  void* memory = ::operator new(64 + size, std::align_val_t{64});
  Blob* blob = new (memory) Blob();
  blob->size_ = size;
  blob->data_ = static_cast<uint8_t*>(memory) + 64;
  return BlobPtr(blob);
}

inline BlobPtr Blob::copy(std::span<const uint8_t> bytes) {
  BlobPtr blob = create(bytes.size());
  if (!bytes.empty()) std::memcpy(blob->data(), bytes.data(), bytes.size());
  return blob;
}

}  // namespace skate::worker
