// Overwrites words of a live index in place and then does everything a client and the daemon can do.
// Nothing may crash, hang or read outside the mappings; errors and lost objects are fine.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "store/arena.h"
#include "store/client/client.h"
#include "store/client/core.h"

namespace {

using namespace skate;
using namespace skate::store;

ObjectId id_of(uint8_t number) {
  ObjectId id;
  id.bytes.fill(number);
  return id;
}

void require(bool condition) {
  if (!condition) std::abort();
}

uint64_t touch(const View& view) {
  uint64_t sum = 0;
  for (size_t i = 0; i < view.size(); i += 512) sum += view.data()[i];
  if (view.size() > 0) sum += view.data()[view.size() - 1];
  return sum;
}

/// A store with some life in it: small, large, erased-but-pinned, spilled, half-made.
struct Stage {
  std::unique_ptr<Arena> arena;
  std::vector<Client> clients;
  Mapping index;
  std::vector<View> views;
  std::vector<Writable> half_made;
};

Stage set_up() {
  ArenaOptions options;
  options.capacity_bytes = 4 << 20;
  options.objects_max = 64;
  options.clients_max = 4;
  options.lock_timeout_ms = 0;
  Stage stage;
  auto arena = Arena::create(options);
  require(arena.ok());
  stage.arena = std::move(*arena);
  for (int i = 0; i < 2; ++i) {
    auto slot = stage.arena->attach_client(::getpid());
    auto client = Client::open(stage.arena->index_fd(), stage.arena->data_fd(), *slot, ClientOptions{0});
    require(client.ok());
    stage.clients.push_back(std::move(*client));
  }
  for (uint8_t i = 0; i < 12; ++i) {
    auto object = stage.clients[i % 2].create(id_of(i), i % 5 == 0 ? 300'000 : 1000u * i);
    require(object.ok());
    if (i == 11)
      stage.half_made.push_back(std::move(*object));
    else
      require(stage.clients[i % 2].seal(std::move(*object)).ok());
  }
  for (uint8_t i = 0; i < 3; ++i) stage.views.push_back(*stage.clients[0].get(id_of(i)));
  stage.clients[1].erase(id_of(1));
  stage.clients[1].erase(id_of(6));
  struct stat status {};
  ::fstat(stage.arena->index_fd(), &status);
  auto index = Mapping::map(stage.arena->index_fd(), static_cast<size_t>(status.st_size),
                            PROT_READ | PROT_WRITE, MAP_SHARED);
  require(index.ok());
  stage.index = std::move(*index);
  return stage;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Stage stage = set_up();
  const Geometry geo = *Geometry::plan(4 << 20, 64, 4);
  // Nine bytes each: where (spread over the sections that hold something), and what.
  const uint64_t sections[] = {0,
                               geo.buckets_at,
                               geo.entries_at,
                               geo.pins_at,
                               geo.clients_at,
                               geo.pools_at,
                               geo.resident_at,
                               geo.blocks_at,
                               geo.index_bytes};
  for (; size >= 12; data += 12, size -= 12) {
    const uint8_t section = data[0] % 8;
    uint16_t where = 0;
    std::memcpy(&where, data + 1, 2);
    uint64_t what = 0;
    std::memcpy(&what, data + 4, 8);
    const uint64_t length = sections[section + 1] - sections[section];
    const uint64_t at = sections[section] + uint64_t{where} * 8 % length;
    auto* word = reinterpret_cast<Word*>(stage.index.base() + at);
    switch (data[3] % 4) {
      case 0: word->store(what); break;
      case 1: word->fetch_xor(uint64_t{1} << (what % 64)); break;
      case 2: word->fetch_add(what % 64 - 32); break;
      default: word->store(word->load() ^ (what & 0xFFFF)); break;
    }
  }
  for (Client& client : stage.clients) {
    for (uint8_t i = 0; i < 14; ++i) {
      (void)client.info(id_of(i));
      if (auto view = client.get(id_of(i))) touch(*view);
    }
  }
  for (View& view : stage.views) touch(view);
  (void)stage.arena->verify(false);
  uint32_t cursor = 0;
  (void)stage.arena->list(&cursor);
  (void)stage.arena->stats();
  for (uint64_t now = 1; now < 200'000; now += 20'000) (void)stage.arena->step(now);
  for (uint8_t i = 20; i < 26; ++i) {
    auto object = stage.clients[i % 2].create(id_of(i), i == 20 ? 1'100'000 : 3000);
    if (!object) continue;
    std::memset(object->data(), i, object->size());
    (void)stage.clients[i % 2].seal(std::move(*object));
  }
  for (const SpillVictim& victim : stage.arena->pick_spill_victims(2'000'000)) {
    if (!stage.arena->commit_spill(victim)) continue;
    if (auto target = stage.arena->begin_restore(victim.id)) {
      std::memset(target->data, 1, target->bytes);
      stage.arena->finish_restore(*target, victim.bytes % 2 == 0);
    }
  }
  for (Client& client : stage.clients)
    for (uint8_t i = 0; i < 26; ++i) client.erase(id_of(i));
  for (uint32_t slot = 1; slot < 4; ++slot) (void)stage.arena->recover_client(slot);
  stage.half_made.clear();
  stage.views.clear();
  return 0;
}
