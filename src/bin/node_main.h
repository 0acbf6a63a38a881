#pragma once

namespace skate::bin {
/// `skated node`: reads its options, runs the node daemon until it is told to stop. Returns the exit code.
int node_main(int argc, char** argv);
}  // namespace skate::bin
