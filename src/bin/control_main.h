#pragma once

namespace skate::bin {
/// `skated control`: reads its options, runs the control service until it is told to stop. Returns the exit
/// code.
int control_main(int argc, char** argv);
}  // namespace skate::bin
