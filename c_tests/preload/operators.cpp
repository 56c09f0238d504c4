// Every form of C++'s operator new and delete, and what they do without memory: std::bad_alloc, the new-handler, NULL with nothrow.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <malloc.h>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static int failed;
#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      std::fprintf(stderr, "%s:%d: false: %s\n", __FILE__, __LINE__, #condition); \
      failed++; \
    } \
  } while (0)

static volatile std::size_t opaque = 1;
static const std::size_t too_much = SIZE_MAX / 2 - 100;

struct alignas(256) Wide {
  char bytes[256];
};

static bool aligned(const void *block, std::size_t to) { return block && reinterpret_cast<std::uintptr_t>(block) % to == 0; }

static void forms() {
  for (std::size_t size : {std::size_t(0), std::size_t(1), std::size_t(100), std::size_t(70000), std::size_t(3) << 20}) {
    std::size_t n = size * opaque;
    operator delete(operator new(n));
    operator delete(operator new(n), n);
    operator delete(operator new(n, std::nothrow), std::nothrow);
    operator delete[](operator new[](n));
    operator delete[](operator new[](n), n);
    operator delete[](operator new[](n, std::nothrow), std::nothrow);
    for (std::size_t align : {std::size_t(32), std::size_t(4096), std::size_t(1) << 21}) {
      std::align_val_t a{align};
      void *block = operator new(n, a);
      CHECK(aligned(block, align) && malloc_usable_size(block) >= n);
      operator delete(block, a);
      operator delete(operator new(n, a), n, a);
      block = operator new(n, a, std::nothrow);
      CHECK(aligned(block, align));
      operator delete(block, a, std::nothrow);
      operator delete[](operator new[](n, a), a);
      operator delete[](operator new[](n, a), n, a);
      operator delete[](operator new[](n, a, std::nothrow), a, std::nothrow);
    }
    void *block = operator new(n);
    CHECK(malloc_usable_size(block) >= n && malloc_usable_size(block) > 0);
    std::free(block); // one allocator behind both
  }
  operator delete(nullptr);
  Wide *wide = new Wide, *many = new Wide[3];
  CHECK(aligned(wide, 256) && aligned(many, 256));
  delete wide;
  delete[] many;
}

template <class Call> static bool throws_bad_alloc(Call call) {
  try {
    call();
  } catch (const std::bad_alloc &) {
    return true;
  }
  return false;
}

static int handled;

static void without_memory() {
  std::align_val_t a{64};
  CHECK(throws_bad_alloc([] { return operator new(too_much * opaque); }));
  CHECK(throws_bad_alloc([] { return operator new[](too_much * opaque); }));
  CHECK(throws_bad_alloc([a] { return operator new(too_much * opaque, a); }));
  CHECK(throws_bad_alloc([a] { return operator new[](too_much * opaque, a); }));
  CHECK(operator new(too_much * opaque, std::nothrow) == nullptr);
  CHECK(operator new[](too_much * opaque, std::nothrow) == nullptr);
  CHECK(operator new(too_much * opaque, a, std::nothrow) == nullptr);
  CHECK(operator new[](too_much * opaque, a, std::nothrow) == nullptr);
  std::set_new_handler([] {
    if (++handled == 3) throw std::bad_alloc();
  });
  CHECK(throws_bad_alloc([] { return operator new(too_much * opaque); }) && handled == 3);
  handled = 0;
  CHECK(operator new(too_much * opaque, std::nothrow) == nullptr && handled == 3);
  std::set_new_handler([] { throw std::runtime_error("mine"); }); // any exception passes
  bool mine = false;
  try {
    operator delete(operator new(too_much * opaque));
  } catch (const std::runtime_error &error) {
    mine = error.what() == std::string("mine");
  }
  CHECK(mine);
  std::set_new_handler(nullptr);
}

static void containers() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([] {
      std::vector<std::string> words;
      for (int i = 0; i < 20000; i++) words.push_back("word number " + std::to_string(i) + " of a thread");
      std::shared_ptr<std::vector<double>> numbers = std::make_shared<std::vector<double>>(300000, 1.5);
      CHECK(words[19999] == "word number 19999 of a thread" && (*numbers)[299999] == 1.5);
    });
  for (auto &thread : threads) thread.join();
}

int main() {
  forms();
  without_memory();
  containers();
  return failed != 0;
}
