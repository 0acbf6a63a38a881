// The rules of README.md one by one. All of them at once, with processes that hold and pass on: src/sim.
#include "node/adoption/adopted_objects.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace skate::node {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

WorkerId worker(uint8_t number) {
  WorkerId id;
  id.bytes.fill(number);
  return id;
}
wire::Address address(uint8_t number) { return {worker(number), NodeId{}}; }
/// The `index`-th object that the process `owner` has put.
ObjectId object(uint8_t owner, uint32_t index) {
  return ObjectId::of(TaskId::normal(1, worker(owner), JobId{}), index);
}

class AdoptedObjectsTest : public testing::Test, protected AdoptionEffects {
 protected:
  AdoptedObjectsTest() {
    for (uint8_t number = 1; number <= 4; ++number)
      adopted.process_came(number, worker(number), first(number));
  }
  void TearDown() override { EXPECT_EQ(adopted.check(), ""); }

  static uint64_t first(uint64_t number) { return number * 4 * wire::kSequencesMax; }
  void hold(ProcessNumber owner, const ObjectId& id) override { held.emplace_back(owner, id); }
  void unhold(ProcessNumber owner, const ObjectId& id) override { unheld.emplace_back(owner, id); }
  void erase_stored(const ObjectId& id) override {
    erased.push_back(id);
    store.erase(id);
  }
  std::optional<wire::KeptObject> look(const ObjectId& id) override {
    auto found = store.find(id);
    if (found == store.end()) return std::nullopt;
    return found->second;
  }

  ObjectId stored(uint8_t owner, uint32_t index, std::vector<std::pair<uint8_t, uint32_t>> contained = {}) {
    wire::KeptObject what = value(owner, index, "");
    what.stored = true;
    for (auto [inner, number] : contained) what.contained.emplace_back(object(inner, number), address(inner));
    store[what.id] = what;
    return what.id;
  }
  static wire::KeptObject value(uint8_t owner, uint32_t index, std::string bytes) {
    wire::KeptObject what;
    what.id = object(owner, index);
    what.size_bytes = bytes.size();
    what.value = std::move(bytes);
    return what;
  }
  void end(ProcessNumber number, const std::set<ProcessNumber>& linked) {
    std::vector<ObjectId> ids;
    for (const auto& [id, what] : store) ids.push_back(id);
    adopted.process_ended(number, linked, ids);
  }
  bool hand_over(ProcessNumber from, std::vector<wire::KeptObject> objects) {
    return adopted.hand_over(from, ++part, std::move(objects));
  }
  wire::ObjectsClaimed claim(ProcessNumber who, uint8_t owner, std::vector<ObjectId> ids) {
    return adopted.claim(who, {address(owner), std::move(ids)});
  }

  std::map<ObjectId, wire::KeptObject> store;
  std::vector<std::pair<ProcessNumber, ObjectId>> held, unheld;
  std::vector<ObjectId> erased;
  uint64_t part = 0;
  AdoptedObjects adopted{*this};
};

TEST_F(AdoptedObjectsTest, WhatIsClaimedStaysUntilItIsReleased) {
  ObjectId kept = stored(1, 1), other = stored(1, 2);
  end(1, {2, 3});
  EXPECT_THAT(claim(2, 1, {kept}).lost, IsEmpty());
  EXPECT_THAT(erased, IsEmpty()) << "process 3 has not said what it holds";
  claim(3, 1, {});
  EXPECT_THAT(erased, ElementsAre(other));
  adopted.release(2, {kept});
  EXPECT_THAT(erased, ElementsAre(other, kept));
  EXPECT_EQ(adopted.size(), 0u);
}

TEST_F(AdoptedObjectsTest, TheLastOfSeveralHoldersFrees) {
  ObjectId kept = stored(1, 1);
  end(1, {2});
  claim(2, 1, {kept});
  claim(3, 1, {kept});
  adopted.release(2, {kept});
  adopted.release(2, {kept});
  EXPECT_THAT(erased, IsEmpty());
  end(3, {});
  EXPECT_THAT(erased, ElementsAre(kept));
}

TEST_F(AdoptedObjectsTest, WithoutLinksEverythingGoesAtOnce) {
  ObjectId left = stored(1, 1);
  end(1, {});
  EXPECT_THAT(erased, ElementsAre(left));
  EXPECT_TRUE(adopted.take_settled());
  EXPECT_FALSE(adopted.take_settled());
}

TEST_F(AdoptedObjectsTest, WhoDiesWithoutAnAnswerIsNotWaitedFor) {
  ObjectId left = stored(1, 1);
  end(1, {2, 3});
  claim(3, 1, {});
  end(2, {3});
  EXPECT_THAT(erased, ElementsAre(left));
}

TEST_F(AdoptedObjectsTest, WhatWasNeverStoredIsLost) {
  end(1, {2});
  EXPECT_THAT(claim(2, 1, {object(1, 1)}).lost, ElementsAre(object(1, 1)));
}

TEST_F(AdoptedObjectsTest, ALivingOwnersObjectsAreNotToBeClaimed) {
  ObjectId its = stored(1, 1);
  EXPECT_THAT(claim(2, 1, {its}).lost, ElementsAre(its));
  end(3, {2});
  EXPECT_THAT(claim(2, 3, {its}).lost, ElementsAre(its)) << "by another's name";
  EXPECT_THAT(erased, IsEmpty());
}

TEST_F(AdoptedObjectsTest, AResultThatIsFinishedAfterItsOwnersEndCanBeClaimedUntilAllHave) {
  end(1, {2, 3});
  ObjectId late = stored(1, 1), later = stored(1, 2);
  EXPECT_THAT(claim(2, 1, {late}).lost, IsEmpty());
  EXPECT_FALSE(adopted.is_stray(later));
  claim(3, 1, {});
  EXPECT_TRUE(adopted.is_stray(later));
  EXPECT_FALSE(adopted.is_stray(late));
  EXPECT_THAT(claim(2, 1, {later}).lost, ElementsAre(later));
}

TEST_F(AdoptedObjectsTest, WhatOthersOwnIsHeldForWhatContainsIt) {
  ObjectId outer = stored(1, 1, {{2, 7}, {2, 7}});
  end(1, {3});
  const std::pair<ProcessNumber, ObjectId> inner{2, object(2, 7)};
  EXPECT_THAT(held, ElementsAre(inner, inner));
  claim(3, 1, {outer});
  EXPECT_THAT(unheld, IsEmpty());
  adopted.release(3, {outer});
  EXPECT_THAT(unheld, ElementsAre(inner, inner));
}

TEST_F(AdoptedObjectsTest, WhatTheDeadOwnedIsKeptForWhatContainsIt) {
  ObjectId inner = stored(1, 1), outer = stored(1, 2, {{1, 1}});
  end(1, {2});
  claim(2, 1, {outer});
  EXPECT_THAT(erased, IsEmpty());
  EXPECT_THAT(held, IsEmpty());
  claim(2, 1, {inner});
  adopted.release(2, {outer});
  EXPECT_THAT(erased, ElementsAre(outer));
  adopted.release(2, {inner});
  EXPECT_THAT(erased, ElementsAre(outer, inner));
}

TEST_F(AdoptedObjectsTest, AHoldOnAProcessPassesToTheAdoptedWhenItEnds) {
  ObjectId outer = stored(1, 1, {{2, 7}});
  end(1, {3});
  claim(3, 1, {outer});
  ObjectId inner = stored(2, 7);
  end(2, {});
  EXPECT_THAT(erased, IsEmpty());
  adopted.release(3, {outer});
  EXPECT_THAT(erased, ElementsAre(outer, inner));
  EXPECT_THAT(unheld, IsEmpty()) << "nobody is there to be told";
}

TEST_F(AdoptedObjectsTest, ADyingHoldersObjectsKeepWhatTheyContain) {
  ObjectId inner = stored(1, 1);
  end(1, {2});
  claim(2, 1, {inner});
  ObjectId outer = stored(2, 1, {{1, 1}});
  end(2, {3});
  claim(3, 2, {outer});
  EXPECT_THAT(erased, IsEmpty());
  adopted.release(3, {outer});
  EXPECT_THAT(erased, ElementsAre(outer, inner));
}

TEST_F(AdoptedObjectsTest, CirclesThatNobodyReachesGo) {
  ObjectId self = stored(1, 1, {{1, 1}}), one = stored(1, 2, {{1, 3}}), two = stored(1, 3, {{1, 2}});
  end(1, {2});
  claim(2, 1, {two});
  EXPECT_THAT(erased, ElementsAre(self));
  adopted.release(2, {two});
  end(3, {});
  EXPECT_THAT(erased, UnorderedElementsAre(self, one, two));
}

TEST_F(AdoptedObjectsTest, HandedOverValuesAreGivenToWhoClaims) {
  EXPECT_TRUE(hand_over(1, {value(1, 1, "one"), value(1, 2, "two")}));
  EXPECT_THAT(claim(2, 1, {object(1, 1)}).lost, ElementsAre(object(1, 1))) << "its owner lives yet";
  end(1, {2});
  wire::ObjectsClaimed answer = claim(2, 1, {object(1, 1)});
  ASSERT_EQ(answer.kept.size(), 1u);
  EXPECT_EQ(answer.kept[0].value, "one");
  EXPECT_EQ(adopted.size(), 1u);
  EXPECT_EQ(adopted.inline_bytes(), 3u);
}

TEST_F(AdoptedObjectsTest, PartsOfAHandOverMayContainEachOther) {
  wire::KeptObject outer = value(1, 1, "outer");
  outer.contained = {{object(1, 2), address(1)}, {object(3, 1), address(3)}};
  EXPECT_TRUE(hand_over(1, {outer}));
  EXPECT_TRUE(hand_over(1, {value(1, 2, "inner")}));
  EXPECT_THAT(held, ElementsAre(std::pair<ProcessNumber, ObjectId>{3, object(3, 1)}));
  end(1, {2});
  claim(2, 1, {object(1, 1)});
  EXPECT_EQ(adopted.size(), 2u);
  adopted.release(2, {object(1, 1)});
  EXPECT_EQ(adopted.size(), 0u);
}

TEST_F(AdoptedObjectsTest, AWrongOwnerOfWhatIsInsideDoesNoHarm) {
  end(1, {2});
  EXPECT_TRUE(hand_over(3, {value(3, 1, "inner")}));
  wire::KeptObject outer = value(2, 1, "outer");
  outer.contained = {{object(3, 1), address(1)}};
  EXPECT_TRUE(hand_over(2, {outer}));
  EXPECT_FALSE(hand_over(3, {value(3, 2, std::string(AdoptedObjects::kInlineBytesMax, 'x'))}));
  EXPECT_EQ(adopted.size(), 1u);
}

TEST_F(AdoptedObjectsTest, NobodyHandsOverWhatIsNotHis) {
  EXPECT_TRUE(hand_over(1, {value(2, 1, "not mine")}));
  EXPECT_EQ(adopted.size(), 0u);
}

TEST_F(AdoptedObjectsTest, InlineValuesAreBounded) {
  std::string big(AdoptedObjects::kInlineBytesMax, 'x');
  EXPECT_TRUE(hand_over(1, {value(1, 1, std::move(big))}));
  EXPECT_FALSE(hand_over(2, {value(2, 1, "one more")}));
  EXPECT_EQ(adopted.size(), 1u);
}

TEST_F(AdoptedObjectsTest, WhatDoesNotFitIsRefusedWhole) {
  ObjectId stored_one = stored(2, 3);
  wire::KeptObject outer = value(2, 1, "outer");
  outer.contained = {{stored_one, address(2)}, {object(3, 1), address(3)}};
  EXPECT_TRUE(hand_over(2, {outer, store[stored_one]}));
  EXPECT_TRUE(hand_over(1, {value(1, 1, std::string(AdoptedObjects::kInlineBytesMax - 9, 'x'))}));
  EXPECT_FALSE(hand_over(2, {value(2, 4, "12345")})) << "one byte too much";
  EXPECT_FALSE(adopted.hand_over(2, part, {value(2, 4, "")})) << "the same call";
  EXPECT_EQ(adopted.size(), 1u);
  const std::pair<ProcessNumber, ObjectId> inner{3, object(3, 1)};
  EXPECT_THAT(held, ElementsAre(inner));
  EXPECT_THAT(unheld, ElementsAre(inner));
  EXPECT_THAT(erased, IsEmpty()) << "its owner lives";
  EXPECT_TRUE(hand_over(2, {outer, store[stored_one]})) << "there is room for these";
  end(2, {3});
  EXPECT_THAT(claim(3, 2, {outer.id}).lost, IsEmpty());
  EXPECT_EQ(adopted.size(), 3u);
}

TEST_F(AdoptedObjectsTest, WhoStaysAfterAllHasGivenNothing) {
  wire::KeptObject outer = value(1, 1, "outer");
  outer.contained = {{object(1, 2), address(1)}, {object(3, 1), address(3)}};
  EXPECT_TRUE(hand_over(1, {outer, value(1, 2, "inner")}));
  EXPECT_TRUE(hand_over(2, {value(2, 1, "another's")}));
  adopted.withdraw(1);
  EXPECT_EQ(adopted.size(), 1u);
  EXPECT_EQ(unheld, held) << "who owns what is inside frees it when it likes";
  EXPECT_TRUE(hand_over(1, {value(1, 2, "inner")})) << "it may go later";
  end(1, {2});
  adopted.withdraw(1);  // late
  EXPECT_EQ(claim(2, 1, {object(1, 2)}).kept.size(), 1u);
}

TEST_F(AdoptedObjectsTest, WhatIsRefusedKeepsNothingAdopted) {
  ObjectId inner = stored(1, 1);
  end(1, {2});
  claim(2, 1, {inner});
  wire::KeptObject outer = value(2, 1, "outer");
  outer.contained = {{inner, address(1)}};
  EXPECT_TRUE(hand_over(2, {outer}));
  EXPECT_FALSE(hand_over(2, {value(2, 2, std::string(AdoptedObjects::kInlineBytesMax, 'x'))}));
  EXPECT_THAT(erased, IsEmpty()) << "its giver holds it";
  adopted.release(2, {inner});
  EXPECT_THAT(erased, ElementsAre(inner));
}

TEST_F(AdoptedObjectsTest, AHandOverThatComesTwiceIsOne) {
  wire::KeptObject outer = value(1, 1, "outer");
  outer.contained = {{object(3, 1), address(3)}};
  EXPECT_TRUE(hand_over(1, {outer}));
  EXPECT_TRUE(hand_over(1, {outer})) << "an object twice";
  EXPECT_TRUE(adopted.hand_over(1, part, {value(1, 3, "a part twice")}));
  EXPECT_EQ(held.size(), 1u);
  EXPECT_EQ(adopted.size(), 1u);
  end(1, {2});
  EXPECT_TRUE(hand_over(1, {value(1, 2, "too late")}));
  claim(2, 1, {outer.id});
  adopted.release(2, {outer.id});
  EXPECT_EQ(unheld.size(), 1u);
  EXPECT_EQ(adopted.size(), 0u);
}

TEST_F(AdoptedObjectsTest, WhatALivingProcessHasHandedOverIsStillHeldFromIt) {
  EXPECT_TRUE(hand_over(1, {value(1, 1, "inner")}));
  ObjectId outer = stored(2, 1, {{1, 1}});
  end(2, {3});
  EXPECT_THAT(held, ElementsAre(std::pair<ProcessNumber, ObjectId>{1, object(1, 1)}))
      << "it may yet be refused, or the rest of its hand-over";
  claim(3, 2, {outer});
  end(1, {});
  EXPECT_EQ(adopted.size(), 2u);
  adopted.release(3, {outer});
  EXPECT_EQ(adopted.size(), 0u);
}

TEST_F(AdoptedObjectsTest, AHandOverIsNotLostWhenItsGiverIsKilled) {
  EXPECT_TRUE(hand_over(1, {value(1, 1, "given")}));
  ObjectId not_yet = stored(1, 2);
  end(1, {2});
  EXPECT_THAT(claim(2, 1, {object(1, 1), not_yet, object(1, 3)}).lost, ElementsAre(object(1, 3)))
      << "neither given nor stored";
}

TEST_F(AdoptedObjectsTest, AnIdTellsItsOwner) {
  ActorId actor = ActorId::make(JobId{});
  EXPECT_EQ(adopted.owner_of(object(2, 5)), worker(2));
  EXPECT_EQ(adopted.owner_of(ObjectId::of(TaskId::actor_call(first(3), actor), 1)), worker(3));
  EXPECT_EQ(adopted.owner_of(ObjectId::of(TaskId::actor_call(first(3) + wire::kSequencesMax - 1, actor), 1)),
            worker(3));
  EXPECT_EQ(adopted.owner_of(ObjectId::of(TaskId::actor_call(first(3) + wire::kSequencesMax, actor), 1)),
            std::nullopt);
  EXPECT_EQ(adopted.owner_of(ObjectId::of(TaskId::actor_call(first(1) - 1, actor), 1)), std::nullopt);
  EXPECT_EQ(adopted.owner_of(object(9, 5)), std::nullopt);
}

TEST_F(AdoptedObjectsTest, SequencesOfTwoProcessesNeverMeet) {
  EXPECT_FALSE(adopted.sequences_free(first(2)));
  EXPECT_FALSE(adopted.sequences_free(first(2) + wire::kSequencesMax - 1));
  EXPECT_FALSE(adopted.sequences_free(first(2) - wire::kSequencesMax + 1));
  EXPECT_TRUE(adopted.sequences_free(first(2) + wire::kSequencesMax));
  EXPECT_TRUE(adopted.sequences_free(first(2) - wire::kSequencesMax));
  EXPECT_FALSE(adopted.sequences_free(0));
  EXPECT_FALSE(adopted.sequences_free(~uint64_t{0}));
}

}  // namespace
}  // namespace skate::node
