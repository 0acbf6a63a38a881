// Client: the object store as a process sees it.
//
//   auto client = store::Client::open(index_fd, data_fd, slot);      // descriptors from the node daemon
//   auto object = client->create(id, bytes);                         // Result<Writable>
//   store::copy_in(object->data(), source, bytes);
//   client->seal(std::move(*object));
//   if (auto view = client->get(id)) use(view->data(), view->size());
//
// Thread-safe. No call asks a server; get, seal and unpinning enter no lock of other processes. A View
// pins its object for as long as it lives, and outlives the Client that made it. In a forked child
// every call is refused; Views may be read there for as long as the child lives, and destroyed freely, also
// after the parent has destroyed its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/ids.h"
#include "base/result.h"

namespace skate::store {

class Core;

enum class ObjectState : uint8_t {
  kAbsent,
  kCreating,  ///< somebody writes it
  kSealed,    ///< `get` gives it
  kSpilled,   ///< on disk, or on its way there or back: ask the node daemon to restore it
};

struct ObjectInfo {
  ObjectState state = ObjectState::kAbsent;
  uint64_t bytes = 0;
  uint32_t creator_slot = 0;
  friend bool operator==(const ObjectInfo&, const ObjectInfo&) = default;
};

/// A sealed object, read-only, pinned while this lives. Movable; share it with std::shared_ptr<View>.
class View {
 public:
  View(View&& other) noexcept;
  View& operator=(View&& other) noexcept;
  ~View();

  const uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<const uint8_t> span() const { return {data_, bytes_}; }

 private:
  friend class Client;
  View(std::shared_ptr<Core> core, uint32_t entry, const uint8_t* data, size_t bytes)
      : core_(std::move(core)), entry_(entry), data_(data), bytes_(bytes) {}
  std::shared_ptr<Core> core_;  // shared by the Client and all its Views and Writables
  uint32_t entry_ = 0;
  const uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

/// An object being made: 64-byte aligned memory that only this process writes. Destroyed unsealed, the
/// object never was.
class Writable {
 public:
  Writable(Writable&& other) noexcept;
  Writable& operator=(Writable&& other) noexcept;
  ~Writable();

  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<uint8_t> span() const { return {data_, bytes_}; }

 private:
  friend class Client;
  friend class Arena;
  Writable(std::shared_ptr<Core> core, uint32_t entry, uint64_t state_bits, uint8_t* data, size_t bytes)
      : core_(std::move(core)), entry_(entry), state_bits_(state_bits), data_(data), bytes_(bytes) {}
  void abandon();
  std::shared_ptr<Core> core_;
  uint32_t entry_ = 0;
  uint64_t state_bits_ = 0;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

struct ClientOptions {
  /// How long create and erase wait for another process that holds the store's lock.
  uint64_t lock_timeout_ms = 2000;
};

class Client {
 public:
  /// The caller keeps its descriptors. The slot comes from Arena::attach_client.
  static Result<Client> open(int index_fd, int data_fd, uint32_t slot, ClientOptions options = {});

  /// kExists: the id is there already, in whatever state. kFull: message with sizes.
  Result<Writable> create(const ObjectId& id, uint64_t bytes);
  /// Makes it readable for everyone. If it was erased meanwhile it is freed instead, which is no error.
  Result<void> seal(Writable&& object);

  /// Nothing if it is not sealed in memory; `info` says what it is then.
  std::optional<View> get(const ObjectId& id);
  bool contains(const ObjectId& id) const { return info(id).state == ObjectState::kSealed; }
  ObjectInfo info(const ObjectId& id) const;

  /// Gone for lookups at once, freed when nobody makes or pins it any more. False: no such object.
  bool erase(const ObjectId& id);

  /// Lets go of what was pinned for forked children that have ended; done now and then by other calls, too.
  void look_at_children();

  uint32_t slot() const;
  uint64_t capacity_bytes() const;
  /// How much damage to the index this store's processes have met so far.
  uint64_t corruptions() const;

 private:
  explicit Client(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::shared_ptr<Core> core_;
};

}  // namespace skate::store
