// Helpers of the store's tests: ids, patterned contents, small arenas.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstring>
#include <memory>

#include "store/arena.h"
#include "store/client/client.h"
#include "store/client/copy.h"

namespace skate::store::testing {

inline ObjectId id_of(uint64_t number) {
  ObjectId id;
  id.bytes.fill(0);
  std::memcpy(id.data(), &number, sizeof(number));
  id.bytes[20] = 7;
  return id;
}

/// Contents that only this object has, so that a mix-up of memory shows.
inline uint64_t pattern_word(const ObjectId& id, uint64_t i) {
  uint64_t seed = 0;
  std::memcpy(&seed, id.data(), sizeof(seed));
  return (seed + 1) * 0x9E3779B97F4A7C15ull + i * 0xD6E8FEB86659FD93ull;
}
inline void fill(uint8_t* data, size_t bytes, const ObjectId& id) {
  for (size_t i = 0; i * 8 + 8 <= bytes; ++i) {
    const uint64_t word = pattern_word(id, i);
    std::memcpy(data + i * 8, &word, 8);
  }
}
inline bool holds(const uint8_t* data, size_t bytes, const ObjectId& id) {
  for (size_t i = 0; i * 8 + 8 <= bytes; ++i) {
    const uint64_t word = pattern_word(id, i);
    if (std::memcmp(data + i * 8, &word, 8) != 0) return false;
  }
  return true;
}

inline ArenaOptions small_options(uint64_t capacity_bytes = 8 << 20, uint64_t objects_max = 4096) {
  ArenaOptions options;
  options.capacity_bytes = capacity_bytes;
  options.objects_max = objects_max;
  options.clients_max = 16;
  return options;
}

inline std::unique_ptr<Arena> make_arena(ArenaOptions options = small_options()) {
  auto arena = Arena::create(options);
  EXPECT_TRUE(arena.ok()) << (arena.ok() ? "" : arena.error().message);
  return std::move(*arena);
}

inline Client attach(Arena& arena, ClientOptions options = {}) {
  auto slot = arena.attach_client(::getpid());
  EXPECT_TRUE(slot.ok());
  auto client = Client::open(arena.index_fd(), arena.data_fd(), *slot, options);
  EXPECT_TRUE(client.ok()) << (client.ok() ? "" : client.error().message);
  return std::move(*client);
}

inline Result<void> put(Client& client, const ObjectId& id, uint64_t bytes) {
  auto object = client.create(id, bytes);
  if (!object) return object.error();
  fill(object->data(), object->size(), id);
  return client.seal(std::move(*object));
}

#define EXPECT_SOUND(arena, quiescent)                                       \
  do {                                                                       \
    const auto sound_ = (arena).verify(quiescent);                           \
    EXPECT_TRUE(sound_.ok()) << (sound_.ok() ? "" : sound_.error().message); \
  } while (false)

}  // namespace skate::store::testing
