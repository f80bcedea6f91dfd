// Where threads of a flight wait for each other.
#pragma once
#include <atomic>
#include <thread>

#include "lanes.h"

namespace lathe {

// Who waits long lets others run: a thread that only spins may hold the very core on which the one that it waits for
// would go on, for as long as the system lets it, and so at every meeting.
class Meeting {
  static constexpr i64 PATIENCE = 1000;  // looks, some 20 us
  std::atomic<i64> came{0}, round{0};

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

 public:
  // All threads of the flight come here, and go on when the last has come.
  void wait() {
    const i64 now = round.load(std::memory_order_relaxed);
    if (came.fetch_add(1, std::memory_order_acq_rel) + 1 == omp_get_num_threads()) {
      came.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (i64 looks = 0; round.load(std::memory_order_acquire) == now; looks++)
      looks < PATIENCE ? pause() : std::this_thread::yield();
  }
};

}  // namespace lathe
