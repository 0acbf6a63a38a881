// Clients are killed everywhere: after every single instruction of every operation (by single-stepping
// one and recovering a copy of the store at each stop), and at random moments under load.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "store/layout.h"
#include "store/lock.h"
#include "store/mapping.h"
#include "store/store_testing.h"

namespace skate::store {
namespace {

using testing::attach;
using testing::fill;
using testing::holds;
using testing::id_of;
using testing::make_arena;
using testing::put;
using testing::small_options;

/// A child that does not outlive the test, however that ends.
pid_t fork_child() {
  const pid_t pid = ::fork();
  if (pid == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

uint64_t file_bytes(int fd) {
  struct stat status {};
  EXPECT_EQ(::fstat(fd, &status), 0);
  return static_cast<uint64_t>(status.st_size);
}

/// A copy of the index with an empty data file of the same size; the store's state is all in the index.
class Snapshot {
 public:
  explicit Snapshot(const Arena& arena)
      : bytes_(file_bytes(arena.index_fd())), data_bytes_(file_bytes(arena.data_fd())) {
    auto mapping = Mapping::map(arena.index_fd(), bytes_, PROT_READ, MAP_SHARED);
    EXPECT_TRUE(mapping.ok());
    source_ = std::move(*mapping);
  }
  /// Whether the index differs from what it was when last asked. What a recovery meets is all in there.
  bool changed() {
    if (last_.size() == bytes_ && std::memcmp(last_.data(), source_.base(), bytes_) == 0) return false;
    last_.assign(source_.base(), source_.base() + bytes_);
    return true;
  }
  std::unique_ptr<Arena> take(const ArenaOptions& options) const {
    UniqueFd index(::memfd_create("copy", MFD_CLOEXEC)), data(::memfd_create("copy-data", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(data.get(), static_cast<off_t>(data_bytes_)), 0);
    size_t written = 0;
    while (written < bytes_) {
      const ssize_t n = ::write(index.get(), source_.base() + written, bytes_ - written);
      if (n <= 0) break;
      written += static_cast<size_t>(n);
    }
    EXPECT_EQ(written, bytes_);
    auto arena = Arena::adopt(std::move(index), std::move(data), options);
    EXPECT_TRUE(arena.ok());
    return std::move(*arena);
  }

 private:
  uint64_t bytes_, data_bytes_;
  Mapping source_;
  std::vector<uint8_t> last_;
};

/// Runs `operations` in a child with a client of its own, one instruction at a time between its two
/// stops, and calls `at_each` after each. Returns how many there were.
long single_step(Arena& arena, uint32_t slot,
                 const std::function<void(Client&, const std::function<void()>&)>& operations,
                 const std::function<void()>& at_each) {
  const pid_t child = fork_child();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(42);
    auto client = Client::open(arena.index_fd(), arena.data_fd(), slot);
    if (!client) ::_exit(43);
    operations(*client, [] { ::raise(SIGSTOP); });
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSTOPPED(status)) << "no ptrace here? exit " << WEXITSTATUS(status);
  long steps = 0;
  while (WIFSTOPPED(status)) {
    if (::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) break;
    ::waitpid(child, &status, 0);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP) break;
    ++steps;
    at_each();
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return steps;
}

struct Scenario {
  const char* name;
  std::function<void(Arena&)> prepare;
  std::function<void(Client&, const std::function<void()>&)> run;
};

class EveryInstruction : public ::testing::TestWithParam<Scenario> {};

TEST_P(EveryInstruction, LeavesNothingTorn) {
  ArenaOptions options;
  options.capacity_bytes = 2 << 20;
  options.objects_max = 32;
  options.clients_max = 4;
  auto arena = make_arena(options);
  Client other = attach(*arena);
  for (uint64_t i = 100; i < 104; ++i) ASSERT_TRUE(put(other, id_of(i), 3000 * (i - 99)).ok());
  other.erase(id_of(101));
  const View pinned = *other.get(id_of(103));
  const auto slot = arena->attach_client(1);
  ASSERT_TRUE(slot.ok());
  if (GetParam().prepare) GetParam().prepare(*arena);

  Snapshot snapshot(*arena);
  long states = 0;
  uint64_t failures = 0;
  std::string first_failure;
  long step = 0;
  const long steps = single_step(*arena, *slot, GetParam().run, [&] {
    ++step;
    if (!snapshot.changed()) return;
    ++states;
    auto copy = snapshot.take(options);
    // Once half-way: repairing is itself interrupted by running it again from the start.
    for (int i = 0; i < 2; ++i) {
      const auto recovered = copy->recover_client(*slot);
      if (!recovered && first_failure.empty()) first_failure = recovered.error().message;
      if (!recovered) ++failures;
    }
    const auto sound = copy->verify(false);
    uint32_t cursor = 0;
    size_t expected = 0;
    for (const StoredObject& object : copy->list(&cursor))
      if (object.info.state != ObjectState::kSealed) ++expected;  // nothing half-made may be left
    if (!sound || expected != 0 || copy->stats().corruptions_total != 0) {
      ++failures;
      if (first_failure.empty())
        first_failure = "step " + std::to_string(step) + ": " +
                        (sound ? "unsealed objects are left" : sound.error().message);
    }
  });
  EXPECT_GT(steps, 200);
  EXPECT_GT(states, 1);
  EXPECT_EQ(failures, 0u) << first_failure;
  EXPECT_TRUE(arena->recover_client(*slot).ok());
  EXPECT_SOUND(*arena, true);
}

INSTANTIATE_TEST_SUITE_P(Operations, EveryInstruction,
                         ::testing::Values(Scenario{"create", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      start();
                                                      auto w = client.create(id_of(1), 5000);
                                                      start();
                                                    }},
                                           Scenario{"create_large", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      start();
                                                      auto w = client.create(id_of(1), 1 << 20);
                                                      start();
                                                    }},
                                           Scenario{"seal", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      auto w = client.create(id_of(1), 5000);
                                                      start();
                                                      (void)client.seal(std::move(*w));
                                                      start();
                                                    }},
                                           Scenario{"abandon", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      auto w = client.create(id_of(1), 70'000);
                                                      start();
                                                      { Writable gone = std::move(*w); }
                                                      start();
                                                    }},
                                           Scenario{"erase", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      start();
                                                      client.erase(id_of(102));
                                                      start();
                                                    }},
                                           Scenario{"get_and_unpin", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      start();
                                                      { auto view = client.get(id_of(102)); }
                                                      start();
                                                    }},
                                           Scenario{"last_unpin_of_an_erased_object", nullptr,
                                                    [](Client& client, const auto& start) {
                                                      auto view = client.get(id_of(102));
                                                      client.erase(id_of(102));
                                                      start();
                                                      view.reset();
                                                      start();
                                                    }},
                                           Scenario{"reclaim_from_others",
                                                    [](Arena& arena) {
                                                      Client hoarder = attach(arena);
                                                      EXPECT_TRUE(put(hoarder, id_of(7), 1 << 20).ok());
                                                      hoarder.erase(id_of(7));
                                                    },
                                                    [](Client& client, const auto& start) {
                                                      auto a = client.create(id_of(1), 900'000);
                                                      start();
                                                      auto b = client.create(id_of(2), 900'000);
                                                      start();
                                                    }}),
                         [](const auto& info) { return std::string(info.param.name); });

// The load of one child: everything, on ids shared with the others, until it is killed.
[[noreturn]] void run_until_killed(int index_fd, int data_fd, uint32_t slot, uint64_t seed) {
  auto client = Client::open(index_fd, data_fd, slot);
  if (!client) ::_exit(43);
  std::mt19937_64 random(seed);
  std::vector<std::pair<ObjectId, View>> views;
  for (;;) {
    const ObjectId id = id_of(random() % 64);
    switch (random() % 6) {
      case 0:
      case 1: {
        const uint64_t bytes = random() % 16 == 0 ? (1 << 20) + random() % 100'000 : random() % 8'000;
        auto object = client->create(id, bytes);
        if (!object) break;
        fill(object->data(), object->size(), id);
        if (random() % 8 != 0) (void)client->seal(std::move(*object));
        break;
      }
      case 2: client->erase(id); break;
      case 3:
        if (views.size() < 20)
          if (auto view = client->get(id)) views.emplace_back(id, std::move(*view));
        break;
      default:
        if (views.empty()) break;
        if (!holds(views.back().second.data(), views.back().second.size(), views.back().first)) ::_exit(44);
        views.pop_back();
    }
  }
}

uint64_t number_in_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// SKATE_STORE_KILLS and SKATE_STORE_SEED make it longer, and different.
TEST(Crash, ThousandsOfClientsKilledAtRandomMomentsUnderLoad) {
  constexpr int kChildren = 3;
  const uint64_t kills_wanted = number_in_environment("SKATE_STORE_KILLS", 3000);
  const uint64_t seed = number_in_environment("SKATE_STORE_SEED", 20240607);
  SCOPED_TRACE("SKATE_STORE_SEED=" + std::to_string(seed));
  auto arena = make_arena(small_options(8 << 20, 256));
  Client reader = attach(*arena);
  std::mt19937_64 random(seed);
  struct Child {
    pid_t pid;
    uint32_t slot;
  };
  std::vector<Child> children;
  uint64_t kills = 0, checked = 0;
  auto start_child = [&] {
    auto slot = arena->attach_client(1);
    ASSERT_TRUE(slot.ok()) << slot.error().message;
    const uint64_t child_seed = random();
    const pid_t pid = fork_child();
    if (pid == 0) run_until_killed(arena->index_fd(), arena->data_fd(), *slot, child_seed);
    children.push_back({pid, *slot});
  };
  while (kills < kills_wanted) {
    while (children.size() < kChildren) start_child();
    // A random moment, not a wait for anything.
    timespec moment{0, static_cast<long>(random() % 2'000'000)};
    ::nanosleep(&moment, nullptr);
    const size_t k = random() % children.size();
    const Child victim = children[k];
    children.erase(children.begin() + static_cast<long>(k));
    ::kill(victim.pid, SIGKILL);
    int status = 0;
    ::waitpid(victim.pid, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "a client saw wrong contents or failed to open: exit "
                                     << WEXITSTATUS(status);
    ++kills;
    while (true) {
      const auto recovered = arena->recover_client(victim.slot);
      if (recovered.ok()) break;
      ASSERT_EQ(recovered.error().code, ErrorCode::kUnavailable) << recovered.error().message;
    }
    arena->step(kills);
    if (kills % 16 != 0) continue;
    const auto sound = arena->verify(false);
    ASSERT_TRUE(sound.ok() || sound.error().code == ErrorCode::kUnavailable)
        << sound.error().message << " after " << kills << " kills";
    for (uint64_t i = 0; i < 64; ++i) {
      if (auto view = reader.get(id_of(i))) {
        ASSERT_TRUE(holds(view->data(), view->size(), id_of(i))) << "after " << kills << " kills";
        ++checked;
      }
    }
  }
  for (const Child& child : children) {
    ::kill(child.pid, SIGKILL);
    ::waitpid(child.pid, nullptr, 0);
  }
  for (const Child& child : children)
    while (!arena->recover_client(child.slot).ok()) {
    }
  EXPECT_GT(checked, 0u);
  RecordProperty("kills", std::to_string(kills));
  EXPECT_SOUND(*arena, true);
  for (uint64_t i = 0; i < 64; ++i) arena->erase(id_of(i));
  EXPECT_SOUND(*arena, true);
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_EQ(arena->stats().used_bytes, 0u);
  EXPECT_EQ(arena->stats().corruptions_total, 0u);
}

TEST(Crash, PinsOfADeadClientStayWhileItsForkedChildLives) {
  auto arena = make_arena();
  Client owner = attach(*arena);
  ASSERT_TRUE(put(owner, id_of(1), 10'000).ok());
  const auto slot = arena->attach_client(1);
  ASSERT_TRUE(slot.ok());
  int ready[2], leave[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(leave, O_CLOEXEC), 0);
  const pid_t parent = fork_child();
  if (parent == 0) {
    auto client = Client::open(arena->index_fd(), arena->data_fd(), *slot);
    auto view = client->get(id_of(1));
    if (::fork() == 0) {
      char go = 'r';
      (void)!::write(ready[1], &go, 1);
      (void)!::read(leave[0], &go, 1);
      go = holds(view->data(), view->size(), id_of(1)) ? 'y' : 'n';
      (void)!::write(ready[1], &go, 1);
      ::_exit(0);
    }
    ::pause();
  }
  char word = 0;
  ASSERT_EQ(::read(ready[0], &word, 1), 1);
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  ASSERT_TRUE(arena->recover_client(*slot).ok());
  owner.erase(id_of(1));
  EXPECT_EQ(arena->stats().objects, 1u);
  ASSERT_EQ(::write(leave[1], "x", 1), 1);
  ASSERT_EQ(::read(ready[0], &word, 1), 1);
  EXPECT_EQ(word, 'y');
  ::close(ready[1]);
  while (::read(ready[0], &word, 1) > 0) {
  }  // the child is gone when nobody holds the other end
  // Its files are closed one by one, so the store's may still be open for an instant.
  for (uint64_t now = 10'000; arena->stats().objects != 0 && now < 100'000'000; now += 2000) arena->step(now);
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_SOUND(*arena, true);
}

TEST(Crash, TheLockOfADeadClientIsReleasedAndAWaiterHasAnEnd) {
  auto arena = make_arena();
  Client waiter = attach(*arena, ClientOptions{20});
  const auto slot = arena->attach_client(4711);
  ASSERT_TRUE(slot.ok());
  auto mapping =
      Mapping::map(arena->index_fd(), file_bytes(arena->index_fd()), PROT_READ | PROT_WRITE, MAP_SHARED);
  ASSERT_TRUE(mapping.ok());
  SharedLock lock(reinterpret_cast<Superblock*>(mapping->base())->lock, *slot);
  ASSERT_TRUE(lock.acquire(0));

  auto object = waiter.create(id_of(1), 100);
  ASSERT_FALSE(object.ok());
  EXPECT_EQ(object.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(object.error().message.find("pid 4711"), std::string::npos) << object.error().message;
  EXPECT_TRUE(arena->recover_client(*slot).ok());
  EXPECT_TRUE(waiter.create(id_of(1), 100).ok());
  EXPECT_SOUND(*arena, true);
}

}  // namespace
}  // namespace skate::store
