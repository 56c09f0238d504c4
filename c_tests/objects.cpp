/* <qmem.hpp>: containers over heap, pool and paged memory, what is thrown, alignment, equality and propagation, owning pointers, pools
   and object pools that move. */
#include "check.h"
#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <qmem.hpp>
#include <quantum_memory.h>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

void handle_memory_error(memory_error_t) {}

static bool paging; /* this machine pages */

template <class Exception, class Function> static void throws(const char *what, Function function) {
  try {
    function();
    fprintf(stderr, "%s: nothing was thrown\n", what);
    checks_failed++;
  } catch (const Exception &) {
  }
}

struct alignas(256) Wide {
  double values[32];
};

/* Any kind of memory: nodes, growth, long strings, over-aligned elements; all of it is given back. */
static void containers(std::pmr::memory_resource *memory) {
  std::pmr::vector<int> numbers(memory);
  std::pmr::map<int, std::pmr::string> names(memory);
  for (int i = 0; i < 20000; i++) {
    numbers.push_back(i);
    if (i % 10 == 0)
      names[i] = std::pmr::string(static_cast<size_t>(i % 300), 'x');
  }
  for (int i = 0; i < 20000; i += 10)
    CHECK(numbers[static_cast<size_t>(i)] == i && names.at(i).size() == static_cast<size_t>(i % 300));
  CHECK(names.at(10).get_allocator().resource() == memory);
  std::pmr::vector<int> copy(numbers, memory), moved(std::move(numbers));
  CHECK(copy == moved && moved.get_allocator().resource() == memory);
  for (int i = 0; i < 20000; i += 20)
    names.erase(i);
  std::pmr::vector<Wide> wide(7, memory);
  CHECK(reinterpret_cast<std::uintptr_t>(wide.data()) % 256 == 0);
  std::pmr::list<Wide> nodes(5, Wide(), memory);
  for (Wide &one : nodes)
    CHECK(reinterpret_cast<std::uintptr_t>(&one) % 256 == 0);
  for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    void *block = memory->allocate(200, alignment);
    CHECK(reinterpret_cast<std::uintptr_t>(block) % alignment == 0);
    memset(block, 1, 200);
    memory->deallocate(block, 200, alignment);
  }
}

static void resources() {
  const size_t before = stats_now().current_allocated;
  qmem::heap_resource heap, other_heap;
  qmem::paged_resource paged;
  qmem::pool pool({64, 256, 4096}), second({64});
  qmem::pool_resource pooled(pool), same(pool.get()), another(second), bounded(pool, std::pmr::null_memory_resource());
  containers(&heap);
  containers(qmem::heap_memory());
  containers(&pooled);
  if (paging) {
    containers(&paged);
    void *block = paged.allocate(1 << 20, 4096);
    CHECK(qmem_kind(block) == QMEM_MEMORY_PAGED && static_cast<char *>(block)[12345] == 0);
    paged.deallocate(block, 1 << 20, 4096);
  }
  CHECK(pool.stats().current_allocated == 0 && pool.stats().num_allocations > 2000);
  CHECK(stats_now().current_allocated == before);
  CHECK(heap == other_heap && heap == *qmem::heap_memory() && heap != paged && heap != pooled && paged == *qmem::paged_memory());
  CHECK(pooled == same && pooled != another && pooled != bounded && pooled.upstream_resource() == qmem::heap_memory());
  throws<std::bad_alloc>("beyond the largest block", [&] { (void)bounded.allocate(4097); });
  throws<std::bad_alloc>("beyond its blocks' alignment", [&] { (void)bounded.allocate(64, 128); });
  throws<std::bad_alloc>("more than there is", [&] { (void)heap.allocate(SIZE_MAX / 2); });
  throws<std::bad_alloc>("an alignment beyond 1 GiB", [&] { (void)heap.allocate(64, size_t(1) << 40); });
}

template <class Vector, class Map, class String> static void filled(Vector vector, Map map, String string) {
  for (int i = 0; i < 5000; i++) {
    vector.push_back(i);
    map.emplace(i, i);
    string.push_back(static_cast<char>('a' + i % 26));
  }
  CHECK(vector[4999] == 4999 && map.at(77) == 77 && string.substr(0, 3) == "abc");
}

template <template <class> class Allocator, class... Arguments> static void allocated(const Arguments &...arguments) {
  using Pair = std::pair<const int, int>;
  Allocator<Pair> pairs(arguments...);
  Allocator<int> numbers(pairs);
  Allocator<char> letters(pairs);
  filled(std::vector<int, Allocator<int>>(numbers), std::map<int, int, std::less<int>, Allocator<Pair>>(pairs),
         std::basic_string<char, std::char_traits<char>, Allocator<char>>(letters));
  std::unordered_map<int, int, std::hash<int>, std::equal_to<int>, Allocator<Pair>> hashed(16, std::hash<int>(), std::equal_to<int>(), pairs);
  for (int i = 0; i < 1000; i++)
    hashed[i] = i;
  CHECK(hashed.size() == 1000 && hashed.get_allocator() == numbers);
  std::vector<Wide, Allocator<Wide>> wide(3, Wide(), Allocator<Wide>(pairs));
  CHECK(reinterpret_cast<std::uintptr_t>(wide.data()) % 256 == 0);
  throws<std::bad_array_new_length>("more than an object can have", [&] { (void)numbers.allocate(SIZE_MAX / 2); });
}

static void allocators() {
  qmem::pool pool({32, 1024}, 100000), other({32, 1024});
  allocated<qmem::allocator>();
  if (paging)
    allocated<qmem::paged_allocator>();
  allocated<qmem::pool_allocator>(pool);
  CHECK(pool.stats().current_allocated == 0 && pool.stats().num_allocations >= 5000);

  using Vector = std::vector<int, qmem::pool_allocator<int>>;
  const qmem::pool_allocator<int> here(pool), there(other);
  CHECK(here == qmem::pool_allocator<char>(pool) && here != there && here != qmem::pool_allocator<char>(other));
  Vector one(100, 1, here), two(100, 2, there);
  const int *data = one.data();
  Vector copy(one);
  CHECK(copy.get_allocator() == here);
  two = one; /* a copy keeps where it is */
  CHECK(two.get_allocator() == there && two[0] == 1);
  two = std::move(one); /* a move takes the memory and where it is from */
  CHECK(two.get_allocator() == here && two.data() == data);
  Vector three(10, 3, there);
  three.swap(two);
  CHECK(three.get_allocator() == here && two.get_allocator() == there && three.data() == data);
  std::set<int, std::less<int>, qmem::allocator<int>> ordered{3, 1, 2}, taken(std::move(ordered));
  CHECK(taken.size() == 3 && qmem::allocator<int>() == qmem::allocator<char>());
  static_assert(std::allocator_traits<qmem::allocator<int>>::is_always_equal::value, "without state");
  static_assert(!std::allocator_traits<qmem::pool_allocator<int>>::is_always_equal::value, "with state");
}

static int alive;
struct Counted {
  explicit Counted(int number = 5) : value(number) {
    if (number < 0)
      throw std::runtime_error("negative");
    alive++;
  }
  Counted(const Counted &) = delete;
  ~Counted() { alive--; }
  int value;
};

static void owning() {
  const size_t before = stats_now().current_allocated;
  {
    qmem::unique_ptr<Counted> one = qmem::make_unique<Counted>(7), two = std::move(one);
    qmem::unique_ptr<Counted[]> many = qmem::make_unique<Counted[]>(10);
    CHECK(!one && two->value == 7 && many[9].value == 5 && many.get_deleter().size() == 10 && alive == 11);
    many = qmem::make_unique<Counted[]>(3);
    two.reset();
    CHECK(alive == 3);
    throws<std::runtime_error>("a constructor's exception", [] { (void)qmem::make_unique<Counted>(-1); });
    throws<std::bad_array_new_length>("too long an array", [] { (void)qmem::make_unique<double[]>(SIZE_MAX / 4); });
    std::unique_ptr<void, qmem::free_delete> block(qmem_allocate(100, 0));
    qmem::unique_ptr<Wide> wide = qmem::make_unique<Wide>();
    CHECK(reinterpret_cast<std::uintptr_t>(wide.get()) % 256 == 0 && qmem_kind(block.get()) == QMEM_MEMORY_HEAP);
    CHECK(qmem::make_unique<int[]>(4)[3] == 0);
    if (paging) {
      qmem::unique_ptr<double[]> state = qmem::make_paged<double[]>(1 << 17);
      CHECK(qmem_kind(state.get()) == QMEM_MEMORY_PAGED && state[1000] == 0.0);
      qmem::unique_ptr<Counted[]> objects = qmem::make_paged<Counted[]>(1 << 15);
      CHECK(objects[77].value == 5 && alive == 3 + (1 << 15));
    }
  }
  CHECK(alive == 0 && stats_now().current_allocated == before);
  qmem::pool pool({16, sizeof(Wide)}, 2);
  {
    auto one = qmem::make_pooled<Counted>(pool, 1), two = qmem::make_pooled<Counted>(pool, 2);
    throws<std::bad_alloc>("an exhausted pool", [&] { (void)qmem::make_pooled<Counted>(pool, 3); });
    CHECK(alive == 2 && pool.stats().current_allocated == 32);
    one.reset();
    throws<std::runtime_error>("a constructor's exception", [&] { (void)qmem::make_pooled<Counted>(pool, -1); });
    CHECK(pool.stats().current_allocated == 16);
    auto wide = qmem::make_pooled<Wide>(pool);
    CHECK(reinterpret_cast<std::uintptr_t>(wide.get()) % 256 == 0);
    struct Large {
      char bytes[1000];
    };
    throws<std::bad_alloc>("no block as large", [&] { (void)qmem::make_pooled<Large>(pool); });
  }
  CHECK(alive == 0 && pool.stats().current_allocated == 0);
}

template <class Object> static void assign_to_itself(Object &object) {
  Object &same = object;
  object = std::move(same);
}

static void pools() {
  qmem::pool one({100}, 3), two(std::move(one));
  static_assert(!std::is_copy_constructible_v<qmem::pool> && std::is_nothrow_move_constructible_v<qmem::pool>, "");
  CHECK(!one && two && one.try_allocate(1) == nullptr);
  qmem_pool_t *handle = two.get();
  assign_to_itself(two);
  CHECK(two.get() == handle);
  void *blocks[3];
  for (void *&block : blocks)
    CHECK((block = two.allocate(100)) != nullptr);
  throws<std::bad_alloc>("an exhausted pool", [&] { (void)two.allocate(100); });
  CHECK(two.try_allocate(100) == nullptr && qmem::last_error().find("all 3 blocks of 100 bytes") != std::string::npos);
  for (void *block : blocks)
    two.release(block);
  two.warm(100, 2);
  try {
    two.warm(100, 4);
    CHECK(!"warmed beyond its bound");
  } catch (const qmem::error &failure) {
    CHECK(std::string(failure.what()).find("max_capacity = 3") != std::string::npos);
  }
  two.trim();
  CHECK(two.stats().resident_bytes == 0);
  qmem::pool three;
  swap(two, three);
  CHECK(three.get() == handle);
  qmem_pool_t *raw = three.release();
  CHECK(raw == handle && !three);
  three.reset(raw);
  two = std::move(three); /* the one that two had ends */
  CHECK(two.get() == handle && !three);
  two.reset();
  two.reset();
  CHECK(!two && qmem_pool_trim(handle) == MEMORY_STATUS_NOT_FOUND);
  throws<qmem::error>("a size of zero", [] { qmem::pool bad({64, 0}); });
}

static void object_pools() {
  using Pool = qmem::object_pool<Counted>;
  int made = 0, reset = 0;
  {
    Pool pool(2, [&made] { return std::make_unique<Counted>(made++); }, [&reset](Counted &) { reset++; }, 1);
    CHECK(made == 1 && alive == 1);
    Pool::loan one = pool.acquire(), two = pool.try_acquire();
    CHECK(one && two && one.get() != two.get() && (*one).value + two->value == 1 && made == 2);
    CHECK(!pool.try_acquire() && !pool.try_acquire(std::chrono::milliseconds(3)) && !pool.try_acquire(std::chrono::milliseconds(-1)));
    assign_to_itself(one);
    CHECK(one);
    Counted *first = one.get();
    one = std::move(two); /* what one had goes back */
    CHECK(!two && one && reset == 1);
    Pool::loan again = pool.acquire();
    CHECK(again.get() == first);
    std::thread later([loan = std::move(one)]() mutable {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      loan.reset();
      loan.reset();
    });
    CHECK(pool.acquire()); /* waits for it, and goes back at once */
    later.join();
    again.reset();
    Pool moved(std::move(pool));
    assign_to_itself(moved);
    CHECK(!pool && moved && moved.acquire() && alive == 2 && reset == 4);
    throws<qmem::error>("an empty pool", [&] { (void)pool.acquire(); });
    Pool other(1);
    (void)other.acquire();
    other = std::move(moved);
    CHECK(alive == 2 && other.acquire());
    other.reset();
    CHECK(alive == 0 && !other);
  }
  bool broken = true;
  Pool pool(1, [&broken] { return std::make_unique<Counted>(broken ? -1 : 1); });
  throws<std::runtime_error>("the create function's exception", [&] { (void)pool.acquire(); });
  throws<std::runtime_error>("the create function's exception", [&] { (void)pool.try_acquire(); });
  broken = false;
  CHECK(pool.acquire()->value == 1);
  broken = true;
  throws<std::runtime_error>("at the start", [&broken] {
    Pool more(2, [&broken] { return std::make_unique<Counted>(broken ? -1 : 1); }, nullptr, 1);
  });
  throws<qmem::error>("more than its most", [] { Pool more(2, [] { return std::make_unique<Counted>(); }, nullptr, 3); });
  std::atomic<int> most{0}, now{0};
  Pool shared(3);
  std::vector<std::thread> threads;
  for (int n = 0; n < 6; n++)
    threads.emplace_back([&] {
      for (int i = 0; i < 300; i++) {
        Pool::loan loan = shared.acquire();
        const int holders = ++now;
        if (holders > most)
          most = holders;
        loan->value++;
        --now;
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  CHECK(most <= 3);
}

int main() {
  memory_allocation_config_t config = {};
  config.allocation_type = ALLOC_HYBRID;
  config.max_memory = 128 << 20;
  paging = initialize_memory_allocation(&config) == MEMORY_STATUS_OK;
  if (!paging) {
    config.allocation_type = ALLOC_CLASSICAL;
    STATUS(MEMORY_STATUS_OK, initialize_memory_allocation(&config));
  }
  resources();
  allocators();
  owning();
  pools();
  object_pools();
  CHECK(alive == 0);
  STATUS(MEMORY_STATUS_OK, stop_memory_allocation());
  STATUS(MEMORY_STATUS_OK, cleanup_allocation_resources());
  return finish();
}
