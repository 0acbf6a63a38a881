#include "store/client/client.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "store/client/fork_guard.h"
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

TEST(Client, AnObjectIsReadableFromEveryProcessOnceSealed) {
  auto arena = make_arena();
  Client writer = attach(*arena), reader = attach(*arena);
  const ObjectId id = id_of(1);

  auto object = writer.create(id, 100'000);
  ASSERT_TRUE(object.ok());
  EXPECT_EQ(object->size(), 100'000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(object->data()) % 64, 0u);
  fill(object->data(), object->size(), id);
  EXPECT_FALSE(reader.get(id).has_value());
  EXPECT_EQ(reader.info(id), (ObjectInfo{ObjectState::kCreating, 100'000, writer.slot()}));

  ASSERT_TRUE(writer.seal(std::move(*object)).ok());
  auto view = reader.get(id);
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->size(), 100'000u);
  EXPECT_TRUE(holds(view->data(), view->size(), id));
  EXPECT_TRUE(reader.contains(id));
  EXPECT_EQ(arena->info(id).state, ObjectState::kSealed);
  view.reset();
  EXPECT_SOUND(*arena, true);
}

TEST(Client, AViewOutlivesErasureAndTheClientThatMadeIt) {
  auto arena = make_arena();
  Client writer = attach(*arena);
  const ObjectId id = id_of(2);
  ASSERT_TRUE(put(writer, id, 50'000).ok());
  std::optional<View> view;
  {
    Client reader = attach(*arena);
    view = reader.get(id);
  }
  ASSERT_TRUE(view.has_value());
  EXPECT_TRUE(writer.erase(id));
  EXPECT_FALSE(writer.erase(id));
  EXPECT_FALSE(writer.get(id).has_value());
  // The id is free again while the old bytes are still being read.
  ASSERT_TRUE(put(writer, id, 1000).ok());
  EXPECT_EQ(view->size(), 50'000u);
  EXPECT_TRUE(holds(view->data(), view->size(), id));
  EXPECT_EQ(arena->stats().objects, 2u);
  view.reset();
  EXPECT_EQ(arena->stats().objects, 1u);
  EXPECT_SOUND(*arena, true);
}

TEST(Client, TheSameIdIsMadeOnce) {
  auto arena = make_arena();
  Client a = attach(*arena), b = attach(*arena);
  auto object = a.create(id_of(3), 10);
  ASSERT_TRUE(object.ok());
  auto again = b.create(id_of(3), 10);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::kExists);
}

TEST(Client, AnUnsealedObjectNeverWas) {
  auto arena = make_arena();
  Client client = attach(*arena);
  { auto object = client.create(id_of(4), 3 << 20); }
  EXPECT_EQ(client.info(id_of(4)).state, ObjectState::kAbsent);
  EXPECT_EQ(arena->stats().used_bytes, 0u);
  ASSERT_TRUE(put(client, id_of(4), 3 << 20).ok());
  EXPECT_SOUND(*arena, true);
}

TEST(Client, ErasingWhatIsBeingMadeFreesItAtTheSeal) {
  auto arena = make_arena();
  Client maker = attach(*arena), owner = attach(*arena);
  auto object = maker.create(id_of(5), 1000);
  ASSERT_TRUE(object.ok());
  EXPECT_TRUE(owner.erase(id_of(5)));
  EXPECT_EQ(arena->stats().objects, 1u);
  EXPECT_TRUE(maker.seal(std::move(*object)).ok());
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_SOUND(*arena, true);
}

TEST(Client, SealingTwiceIsAnError) {
  auto arena = make_arena();
  Client client = attach(*arena);
  auto object = client.create(id_of(6), 10);
  ASSERT_TRUE(client.seal(std::move(*object)).ok());
  EXPECT_EQ(client.seal(std::move(*object)).error().code, ErrorCode::kInvalid);
}

TEST(Client, EmptyAndTinyObjectsWork) {
  auto arena = make_arena();
  Client client = attach(*arena);
  for (uint64_t bytes : {0, 1, 63, 64, 1023, 1024, 1025}) {
    ASSERT_TRUE(put(client, id_of(bytes), bytes).ok());
    auto view = client.get(id_of(bytes));
    ASSERT_TRUE(view.has_value());
    EXPECT_EQ(view->size(), bytes);
  }
  EXPECT_SOUND(*arena, true);
}

TEST(Client, FullIsAnErrorWithSizesAndMemoryOfOthersIsUsedFirst) {
  auto arena = make_arena(small_options(8 << 20));
  Client a = attach(*arena), b = attach(*arena);
  // All of it becomes a's warm free memory, small and large; b still gets it.
  for (uint64_t i = 0; i < 7; ++i) ASSERT_TRUE(put(a, id_of(i), 1 << 20).ok());
  for (uint64_t i = 10; i < 20; ++i) ASSERT_TRUE(put(a, id_of(i), 50'000).ok());
  for (uint64_t i = 0; i < 20; ++i) a.erase(id_of(i));
  EXPECT_EQ(arena->stats().used_bytes, 0u);
  ASSERT_TRUE(put(b, id_of(100), 8 << 20).ok());
  EXPECT_SOUND(*arena, true);

  auto more = a.create(id_of(101), 1000);
  ASSERT_FALSE(more.ok());
  EXPECT_EQ(more.error().code, ErrorCode::kFull);
  EXPECT_NE(more.error().message.find("8388608 of 8388608 bytes in use by 1 objects"), std::string::npos)
      << more.error().message;
  auto huge = a.create(id_of(102), UINT64_MAX);
  EXPECT_EQ(huge.error().code, ErrorCode::kFull);
  b.erase(id_of(100));
  EXPECT_TRUE(put(a, id_of(101), 1000).ok());
  EXPECT_SOUND(*arena, true);
}

TEST(Client, ThePutLoopReusesTheSameMemory) {
  auto arena = make_arena(small_options(256 << 20));
  Client a = attach(*arena), b = attach(*arena);
  for (const uint64_t bytes : {uint64_t{80} << 20, uint64_t{20'000}}) {
    uint8_t* place_a = nullptr;
    uint8_t* place_b = nullptr;
    uint64_t resident = 0;
    for (int round = 0; round < 10; ++round) {
      auto x = a.create(id_of(1), bytes);
      auto y = b.create(id_of(2), bytes);
      ASSERT_TRUE(x.ok());
      ASSERT_TRUE(y.ok());
      if (round > 0) {
        EXPECT_EQ(x->data(), place_a);
        EXPECT_EQ(y->data(), place_b);
        EXPECT_EQ(arena->stats().resident_bytes, resident);
      }
      place_a = x->data();
      place_b = y->data();
      resident = arena->stats().resident_bytes;
      ASSERT_TRUE(a.seal(std::move(*x)).ok());
      ASSERT_TRUE(b.seal(std::move(*y)).ok());
      a.erase(id_of(1));
      a.erase(id_of(2));  // freed by another client: still b's memory
    }
  }
  EXPECT_SOUND(*arena, true);
}

TEST(Client, ObjectLimitIsAnError) {
  auto arena = make_arena(small_options(8 << 20, 32));
  Client client = attach(*arena);
  for (uint64_t i = 0; i < 32; ++i) ASSERT_TRUE(put(client, id_of(i), 100).ok());
  auto more = client.create(id_of(99), 100);
  ASSERT_FALSE(more.ok());
  EXPECT_EQ(more.error().code, ErrorCode::kFull);
  client.erase(id_of(5));
  EXPECT_TRUE(put(client, id_of(99), 100).ok());
  EXPECT_SOUND(*arena, true);
}

TEST(Client, ASlotHasOneOwner) {
  auto arena = make_arena();
  Client client = attach(*arena);
  EXPECT_FALSE(Client::open(arena->index_fd(), arena->data_fd(), client.slot()).ok());
  EXPECT_FALSE(Client::open(arena->index_fd(), arena->data_fd(), 0).ok());
  EXPECT_FALSE(Client::open(arena->index_fd(), arena->data_fd(), 16).ok());
  EXPECT_FALSE(Client::open(arena->data_fd(), arena->index_fd(), 5).ok());
}

TEST(Client, AgainstAModelUnderRandomOperations) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    auto arena = make_arena(small_options(16 << 20, 512));
    std::vector<Client> clients;
    for (int i = 0; i < 3; ++i) clients.push_back(attach(*arena));
    std::unordered_map<uint64_t, uint64_t> model;  // id -> size
    std::vector<std::pair<uint64_t, View>> views;
    for (int i = 0; i < 4000; ++i) {
      Client& client = clients[random() % clients.size()];
      const uint64_t number = random() % 300;
      switch (random() % 4) {
        case 0: {
          const uint64_t bytes = random() % 8 == 0 ? random() % (3 << 20) : random() % 60'000;
          const auto done = put(client, id_of(number), bytes);
          if (model.count(number) != 0) {
            ASSERT_EQ(done.error().code, ErrorCode::kExists);
          } else if (done.ok()) {
            model[number] = bytes;
          } else {
            ASSERT_EQ(done.error().code, ErrorCode::kFull) << done.error().message;
          }
          break;
        }
        case 1: ASSERT_EQ(client.erase(id_of(number)), model.erase(number) == 1); break;
        case 2: {
          auto view = client.get(id_of(number));
          ASSERT_EQ(view.has_value(), model.count(number) == 1);
          if (view) {
            ASSERT_EQ(view->size(), model[number]);
            views.emplace_back(number, std::move(*view));
          }
          break;
        }
        default:
          if (!views.empty()) {
            const size_t k = random() % views.size();
            ASSERT_TRUE(holds(views[k].second.data(), views[k].second.size(), id_of(views[k].first)));
            if (k + 1 != views.size()) std::swap(views[k], views.back());
            views.pop_back();
          }
      }
      if (i % 200 == 0) EXPECT_SOUND(*arena, true);
    }
    views.clear();
    for (const auto& [number, bytes] : model) EXPECT_TRUE(clients[0].erase(id_of(number)));
    EXPECT_SOUND(*arena, true);
    EXPECT_EQ(arena->stats().objects, 0u);
    EXPECT_EQ(arena->stats().used_bytes, 0u);
    EXPECT_EQ(arena->stats().corruptions_total, 0u);
  }
}

TEST(Client, ThreadsOfOneClientShareIt) {
  auto arena = make_arena(small_options(32 << 20, 1024));
  Client client = attach(*arena), other = attach(*arena);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      Client& mine = t == 3 ? other : client;
      for (int i = 0; i < 3000; ++i) {
        const ObjectId id = id_of(random() % 40);
        switch (random() % 4) {
          case 0: (void)put(mine, id, 200 + random() % 20'000); break;
          case 1: mine.erase(id); break;
          default:
            if (auto view = mine.get(id); view && !holds(view->data(), view->size(), id)) ++wrong;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
  for (uint64_t i = 0; i < 40; ++i) client.erase(id_of(i));
  EXPECT_SOUND(*arena, true);
  EXPECT_EQ(arena->stats().objects, 0u);
}

/// A client that reads object 1 when it forks.
class ForkedClient : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(put(client, id_of(1), 100'000).ok());
    view = client.get(id_of(1));
    ASSERT_TRUE(view.has_value());
    data = view->data();
  }
  std::unique_ptr<Arena> arena = make_arena();
  Client client = attach(*arena);
  std::optional<View> view;
  const uint8_t* data = nullptr;
};

TEST_F(ForkedClient, WhatAChildHoldsOutlivesTheParentsViewsAndIsFreedAfterIt) {
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(go[1]);
    char byte = 0;
    ::_exit(::read(go[0], &byte, 1) == 1 && holds(data, 100'000, id_of(1)) ? 0 : 1);
  }
  view.reset();
  client.erase(id_of(1));
  EXPECT_EQ(arena->stats().objects, 1u);
  ASSERT_TRUE(put(client, id_of(2), 100'000).ok());
  EXPECT_EQ(::write(go[1], "x", 1), 1);
  ::close(go[0]);
  ::close(go[1]);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  ASSERT_TRUE(put(client, id_of(3), 100).ok());
  EXPECT_EQ(arena->stats().objects, 2u);
}

/// Children that live until their end is asked for.
class Children {
 public:
  Children() {
    EXPECT_EQ(::pipe2(go_, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(ready_, O_CLOEXEC), 0);
  }
  ~Children() {
    for (const int fd : {go_[0], go_[1], ready_[0], ready_[1]}) ::close(fd);
  }
  /// Forks one that waits for `end`, and ends well if `check` still holds then.
  template <class Check>
  void fork(Check&& check) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      char byte = 'r';
      (void)!::write(ready_[1], &byte, 1);
      (void)!::read(go_[0], &byte, 1);
      ::_exit(check() ? 0 : 1);
    }
    ASSERT_GT(pid, 0);
    pids_.push_back(pid);
    char byte = 0;
    ASSERT_EQ(::read(ready_[0], &byte, 1), 1);
  }
  /// How many ended well.
  int end() {
    int well = 0;
    // A byte each: the pipe's end would not do, for children that were forked later have it open, too.
    EXPECT_EQ(::write(go_[1], std::string(pids_.size(), 'x').data(), pids_.size()), ssize_t(pids_.size()));
    for (const pid_t pid : pids_) {
      int status = 0;
      ::waitpid(pid, &status, 0);
      well += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    return well;
  }

 private:
  int go_[2], ready_[2];
  std::vector<pid_t> pids_;
};

int descriptors() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count += entry.exists();
  return count;
}

TEST_F(ForkedClient, WhatManyChildrenReadNeedsNoDescriptors) {
  Children children;
  const int before = descriptors();
  for (int i = 0; i < 200; ++i) children.fork([&] { return holds(data, 100'000, id_of(1)); });
  EXPECT_EQ(descriptors(), before);
  view.reset();
  client.erase(id_of(1));
  EXPECT_EQ(arena->stats().objects, 1u);
  ASSERT_TRUE(put(client, id_of(2), 100'000).ok());
  EXPECT_EQ(children.end(), 200);
  client.look_at_children();
  EXPECT_EQ(arena->stats().objects, 1u);
  EXPECT_SOUND(*arena, true);
}

TEST_F(ForkedClient, AChildThatClosesAllAndItsOwnChildKeepWhatTheyRead) {
  int go[2], result[2];
  ASSERT_EQ(::pipe2(go, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(result, O_CLOEXEC), 0);
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);  // the grandchild is waited for here
  const pid_t child = ::fork();
  if (child == 0) {
    for (int fd = 0; fd < 1024; ++fd)
      if (fd != go[0] && fd != result[1]) ::close(fd);
    if (::fork() != 0) ::_exit(0);
    char byte = 0;
    (void)!::read(go[0], &byte, 1);
    byte = holds(data, 100'000, id_of(1)) ? 'y' : 'n';
    (void)!::write(result[1], &byte, 1);
    ::_exit(0);
  }
  ::close(result[1]);
  ::waitpid(child, nullptr, 0);
  view.reset();
  client.erase(id_of(1));
  ASSERT_TRUE(put(client, id_of(2), 100'000).ok());
  EXPECT_EQ(arena->stats().objects, 2u);
  EXPECT_EQ(::write(go[1], "x", 1), 1);
  char word = 0;
  ASSERT_EQ(::read(result[0], &word, 1), 1);
  EXPECT_EQ(word, 'y');
  EXPECT_GT(::waitpid(-1, nullptr, 0), 0);
  EXPECT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
  for (const int fd : {go[0], go[1], result[0]}) ::close(fd);
  client.look_at_children();
  EXPECT_EQ(arena->stats().objects, 1u);
}

TEST_F(ForkedClient, AChildThatExecutesAnotherProgramLetsGo) {
  int go[2], said[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(said), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(go[0], 0);
    ::dup2(said[1], 1);
    ::close(go[1]);
    ::execl("/bin/sh", "sh", "-c", "echo x; read line", nullptr);
    ::_exit(127);
  }
  view.reset();
  client.erase(id_of(1));
  char byte = 0;
  ASSERT_EQ(::read(said[0], &byte, 1), 1);
  client.look_at_children();
  EXPECT_EQ(arena->stats().objects, 0u);
  for (const int fd : {go[0], go[1], said[0], said[1]}) ::close(fd);
  ::waitpid(child, nullptr, 0);
}

TEST(Client, MoreSetsOfPinsThanMarksAreStillKept) {
  auto arena = make_arena();
  Client client = attach(*arena);
  Children children;
  constexpr int kSets = ForkGuard::kMarks + 20;
  for (int i = 0; i < kSets; ++i) {
    ASSERT_TRUE(put(client, id_of(i), 1000).ok());
    std::optional<View> view = client.get(id_of(i));
    ASSERT_TRUE(view.has_value());
    const uint8_t* data = view->data();
    children.fork([data, i] { return holds(data, 1000, id_of(i)); });
    view.reset();
    client.erase(id_of(i));
  }
  EXPECT_EQ(arena->stats().objects, uint64_t{kSets});
  EXPECT_EQ(children.end(), kSets);
  client.look_at_children();
  EXPECT_EQ(arena->stats().objects, 0u);
  EXPECT_SOUND(*arena, true);
}

TEST(Client, AChildHoldsOnlyWhatItsParentHeldWhenItWasForked) {
  auto arena = make_arena();
  Client client = attach(*arena);
  std::unique_ptr<Children> before;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(put(client, id_of(i), 1000).ok());
    std::optional<View> view = client.get(id_of(i));
    ASSERT_TRUE(view.has_value());
    auto children = std::make_unique<Children>();
    children->fork([] { return true; });
    view.reset();
    client.erase(id_of(i));
    if (before) {
      EXPECT_EQ(before->end(), 1);
    }
    before = std::move(children);
    client.look_at_children();
    EXPECT_EQ(arena->stats().objects, 1u) << "what the child before held has gone with it";
  }
  EXPECT_EQ(before->end(), 1);
}

TEST_F(ForkedClient, AForkWithoutADescriptorToSpareKeepsWhatItReadsForGood) {
  Children children;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  children.fork([&] { return holds(data, 100'000, id_of(1)); });
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  view.reset();
  client.erase(id_of(1));
  ASSERT_TRUE(put(client, id_of(2), 100'000).ok());
  EXPECT_EQ(children.end(), 1);
  client.look_at_children();
  EXPECT_EQ(arena->stats().objects, 2u);
}

TEST_F(ForkedClient, AForkedChildReadsButNeitherFreesNorWrites) {
  auto unsealed = client.create(id_of(2), 100);
  ASSERT_TRUE(unsealed.ok());

  const pid_t child = ::fork();
  if (child == 0) {
    int failures = 0;
    if (!holds(view->data(), view->size(), id_of(1))) failures |= 1;
    if (client.get(id_of(1)).has_value()) failures |= 2;
    if (client.create(id_of(3), 10).ok()) failures |= 4;
    if (client.erase(id_of(1))) failures |= 8;
    if (client.seal(std::move(*unsealed)).ok()) failures |= 16;
    view.reset();
    { Writable dropped = std::move(*unsealed); }
    ::_exit(failures);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(WIFEXITED(status));
  client.erase(id_of(1));
  EXPECT_TRUE(holds(view->data(), view->size(), id_of(1)));
  EXPECT_EQ(arena->stats().objects, 2u);
  EXPECT_TRUE(client.seal(std::move(*unsealed)).ok());
  view.reset();
  EXPECT_EQ(arena->stats().objects, 1u);
  EXPECT_SOUND(*arena, true);
}

}  // namespace
}  // namespace skate::store
