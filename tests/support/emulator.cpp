// The run time of the emulated grid: what `emulator.py` links with each .cu file. See there for what it does.
//
// Threads are fibers: each has a stack, and gives way only where CUDA has threads wait for each other. The .cu file is
// compiled with the calls of GCC's thread sanitizer before each access to memory (`__tsan_read4` and so on), and the
// functions that it calls are the ones below: they know which thread runs and what it may touch.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

typedef unsigned int uint32;
typedef unsigned char byte;

struct uint3 {
    uint32 x, y, z;
};

extern "C" {
uint3 threadIdx, blockIdx, blockDim, gridDim;  // constants in the eyes of a kernel
// This library in memory, where a kernel's tables of constants are.
extern char __ehdr_start __attribute__((visibility("hidden"))), _end __attribute__((visibility("hidden")));
}

// What a launch is given. The layout is repeated in emulator.py.
struct Extent {
    uint64_t begin, end;
    uint64_t unit;  // bytes of an element, which are read and written together
    const char* name;
};
struct Launch {
    const char* name;
    void (*call)(void**);
    void** arguments;
    uint3 grid, block;
    uint64_t dynamic_shared;
    uint64_t cooperative;
    const Extent* extents;
    uint64_t extent_count;
};

namespace {

constexpr size_t STACK = 64 << 10, STATIC_SHARED = 48 << 10;
constexpr size_t ARENA = 240 << 10, GAP = 16;  // shared memory, and what nobody may touch behind each array
constexpr int WARP = 32;

// ---------------------------------------------------------------------------------------------------------- the state

enum State { RUNS, WAITS_FOR_BLOCK, WAITS_FOR_WARP, WAITS_FOR_GRID, EXITED };
const char* const DOES[] = {"runs", "waits at __syncthreads", "waits", "waits at grid_sync", "has exited"};

struct Copy {
    byte* target;
    const byte* source;
    int bytes, valid, group;
};

struct Thread {
    State state;
    uint32 rank;  // in its block
    uint32 warp_epoch;
    const char* file;
    int line;
    // What it does together with its warp
    const char* what;
    uint32 mask;
    void* brought;
    // Asynchronous copies
    std::vector<Copy> copies;
    int groups;
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

// Who touched a unit of memory last. A reader may stand for several: then `scope` is more than itself.
enum Scope : uint16_t { ONESELF, ITS_WARP, ITS_BLOCK, THE_GRID };
struct Stamp {
    uint32 launch;  // 0: nobody
    uint32 block, grid_epoch, epoch, warp_epoch;
    uint16_t thread;
    Scope scope;
};
struct Shadow {
    Stamp writer, reader;
    uint32 copying;  // 1 + the rank of the thread whose asynchronous copy is under way
};

struct Block {
    uint3 index;
    uint32 number, epoch, alive;
    std::vector<Thread> threads;
    byte* stacks;
    byte* shared;
    Shadow* shadow;    // of each byte
    byte* allocated;   // whether a byte is
    size_t top, fixed;  // end of what is allocated; bytes of SHARED
    std::map<const void*, size_t> sites;  // offset of each SHARED
};

Launch launch;
uint32 launch_number = 0, grid_epoch = 0, block_threads = 0;
byte* stacks = nullptr;
size_t stacks_size = 0;
Block* block;
Thread* thread;
std::vector<Shadow*> shadows;  // of the extents
size_t recent = 0;
char message[1024];
bool failed;

#if defined(__x86_64__)
void* scheduler;
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");
void give_way() { emulator_switch(&thread->stack_pointer, scheduler); }
void resume() { emulator_switch(&scheduler, thread->stack_pointer); }
#else
ucontext_t scheduler;
void give_way() { swapcontext(&thread->context, &scheduler); }
void resume() { swapcontext(&scheduler, &thread->context); }
#endif

uint3 index_of(uint32 rank) {
    return {rank % blockDim.x, rank / blockDim.x % blockDim.y, rank / (blockDim.x * blockDim.y)};
}

std::string name_of(uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string describe(const Thread& t) {
    std::string text = "thread " + name_of(index_of(t.rank)) + " " + DOES[t.state];
    if (t.state == WAITS_FOR_WARP) {
        char mask[32];
        snprintf(mask, sizeof mask, " with mask 0x%08x", t.mask);
        text += std::string(" at ") + t.what + mask;
    }
    if (t.state != RUNS && t.state != EXITED) text += std::string(", ") + t.file + ":" + std::to_string(t.line);
    return text;
}

// Note what went wrong; the kernel is left where it stands.
void note(const std::string& what) {
    if (failed) return;
    failed = true;
    snprintf(message, sizeof message, "kernel %s, block %s, %s", launch.name, name_of(block->index).c_str(),
             what.c_str());
}

[[noreturn]] void fail(const std::string& what) {
    note("thread " + name_of(threadIdx) + ": " + what);
    give_way();
    abort();
}

// ----------------------------------------------------------------------------------------------------- what is touched

Stamp stamp() {
    return {launch_number, block->number, grid_epoch, block->epoch, thread->warp_epoch, uint16_t(thread->rank), ONESELF};
}

// Whether what `before` did is done and seen by this thread: some barrier stands between.
bool is_ordered(const Stamp& before) {
    if (before.launch != launch_number || before.grid_epoch != grid_epoch) return true;
    if (before.scope == THE_GRID || before.block != block->number) return false;
    if (before.epoch != block->epoch) return true;
    if (before.scope == ITS_BLOCK) return false;
    if (before.thread / WARP != thread->rank / WARP) return false;
    if (before.warp_epoch < thread->warp_epoch) return true;
    return before.scope == ONESELF && before.thread == thread->rank;
}

Scope together(const Stamp& other) {
    if (other.scope == THE_GRID || other.block != block->number) return THE_GRID;
    if (other.scope == ITS_BLOCK || other.thread / WARP != thread->rank / WARP) return ITS_BLOCK;
    return ITS_WARP;
}

std::string other_thread(const Stamp& other) {
    if (other.scope != ONESELF) return "several threads";
    std::string text = "thread " + name_of(index_of(other.thread));
    if (other.block == block->number) return text;
    const uint32 b = other.block;
    const uint3 index = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
    return text + " of block " + name_of(index);
}

[[noreturn]] void race(const char* does, const char* did, const Stamp& other, const std::string& where) {
    const char* barrier = "__syncthreads";
    if (other.scope == THE_GRID || other.block != block->number) barrier = "end of a kernel";
    else if (other.scope < ITS_BLOCK && other.thread / WARP == thread->rank / WARP) barrier = "__syncwarp";
    fail(std::string(does) + " " + where + ", which " + other_thread(other) + " " + did + ", with no " + barrier +
         " between");
}

template <class Where>
void touch(Shadow& s, bool writes, Where where) {
    if (s.copying != 0) {
        fail(std::string(writes ? "writes " : "reads ") + where() + ", to which an asynchronous copy of thread " +
             name_of(index_of(s.copying - 1)) + " is under way");
    }
    if (!is_ordered(s.writer)) race(writes ? "writes" : "reads", "wrote", s.writer, where());
    if (writes) {
        if (!is_ordered(s.reader)) race("writes", "read", s.reader, where());
        s.writer = stamp();
    } else {
        Stamp now = stamp();
        if (!is_ordered(s.reader)) now.scope = together(s.reader);
        s.reader = now;
    }
}

std::string hexadecimal(uintptr_t x) {
    char text[32];
    snprintf(text, sizeof text, "0x%zx", size_t(x));
    return text;
}

[[noreturn]] void outside(uintptr_t p, size_t bytes, bool writes) {
    std::string where = "address " + hexadecimal(p);
    uint64_t nearest = UINT64_MAX;
    for (size_t i = 0; i < launch.extent_count; i++) {
        const Extent& e = launch.extents[i];
        const bool behind = int64_t(p - e.begin) >= 0;  // an address may have gone round below 0
        const uint64_t distance = !behind ? e.begin - p : p >= e.end ? p - e.end : 0;
        if (distance >= nearest) continue;
        nearest = distance;
        where = std::to_string(distance) + " bytes " + (behind ? "behind" : "before");
        if (p >= e.begin && p < e.end) where = "partly behind";
        where += std::string(" ") + e.name + " of " + std::to_string(e.end - e.begin) + " bytes";
    }
    fail(std::string(writes ? "stores " : "loads ") + std::to_string(bytes) + " bytes out of bounds: " + where);
}

void touch_shared(uintptr_t p, size_t bytes, bool writes) {
    const size_t begin = p - uintptr_t(block->shared);
    for (size_t i = begin; i < begin + bytes; i++) {
        if (i >= ARENA || !block->allocated[i]) {
            fail(std::string(writes ? "stores " : "loads ") + std::to_string(bytes) +
                 " bytes out of bounds of shared memory, at its byte " + std::to_string(begin));
        }
        touch(block->shadow[i], writes, [&] { return "shared memory at its byte " + std::to_string(i); });
    }
}

void touch_global(uintptr_t p, size_t bytes, bool writes) {
    size_t i = recent;
    for (size_t tried = 0;; tried++, i++) {
        if (tried == launch.extent_count) outside(p, bytes, writes);
        if (i >= launch.extent_count) i = 0;
        if (p >= launch.extents[i].begin && p + bytes <= launch.extents[i].end) break;
    }
    recent = i;
    const Extent& e = launch.extents[i];
    for (size_t unit = (p - e.begin) / e.unit; unit * e.unit < p + bytes - e.begin; unit++) {
        touch(shadows[i][unit], writes,
              [&] { return "element " + std::to_string(unit) + " of " + e.name; });
    }
}

inline void access(const void* address, size_t bytes, bool writes, bool aligned) {
    const uintptr_t p = uintptr_t(address);
    if (p - uintptr_t(stacks) < stacks_size) return;
    if (p - uintptr_t(&__ehdr_start) < size_t(&_end - &__ehdr_start)) return;
    if (aligned && p % bytes != 0) {
        fail(std::string(writes ? "stores " : "loads ") + std::to_string(bytes) + " bytes at address " + hexadecimal(p) +
             ", which is not a multiple of that");
    }
    if (p - uintptr_t(block->shared) < ARENA) touch_shared(p, bytes, writes);
    else touch_global(p, bytes, writes);
}

// ------------------------------------------------------------------------------------------------------- the schedule

void run_thread() {
    launch.call(launch.arguments);
    thread->state = EXITED;
    block->alive--;
    give_way();
    abort();
}

void prepare(Thread& t, uint32 rank, byte* stack) {
    t = Thread();
    t.rank = rank;
    std::memset(stack, 0xA5, 64);  // looked at after the run: a stack that grew too long
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK) - 1;
    *--top = reinterpret_cast<void*>(run_thread);  // on entry the stack is 8 bytes off a multiple of 16, as ABI has it
    t.stack_pointer = top - 6;
    std::memset(t.stack_pointer, 0, 6 * sizeof(void*));
#else
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = stack;
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = nullptr;
    makecontext(&t.context, run_thread, 0);
#endif
}

bool stack_is_whole(const byte* stack) {
    for (int i = 0; i < 64; i++) {
        if (stack[i] != 0xA5) return false;
    }
    return true;
}

void start(Block& b, uint32 number, byte* its_stacks) {
    b.number = number;
    b.index = {number % gridDim.x, number / gridDim.x % gridDim.y, number / (gridDim.x * gridDim.y)};
    b.epoch = 0;
    b.alive = block_threads;
    b.stacks = its_stacks;
    if (b.shared == nullptr) {
        b.shared = static_cast<byte*>(std::aligned_alloc(1024, ARENA));
        b.shadow = static_cast<Shadow*>(std::calloc(ARENA, sizeof(Shadow)));
        b.allocated = static_cast<byte*>(std::calloc(ARENA, 1));
        std::memset(b.shared, 0xFF, ARENA);
        b.top = 0;
    }
    // What the block before had: not a number in any floating type, and touched by nobody.
    std::memset(b.shared, 0xFF, b.top);
    std::memset(b.allocated, 0, b.top);
    std::memset(static_cast<void*>(b.shadow), 0, b.top * sizeof(Shadow));
    b.sites.clear();
    b.fixed = 0;
    b.top = (launch.dynamic_shared + 15) / 16 * 16 + GAP;
    std::memset(b.allocated, 1, launch.dynamic_shared);
    b.threads.resize(block_threads);
    for (uint32 i = 0; i < block_threads; i++) prepare(b.threads[i], i, its_stacks + i * STACK);
}

// Why threads that wait will wait for ever.
void note_deadlock(Block& b) {
    for (Thread& t : b.threads) {
        if (t.state != WAITS_FOR_WARP) continue;
        for (uint32 lane = 0; lane < WARP; lane++) {
            if ((t.mask >> lane & 1) == 0) continue;
            const uint32 rank = t.rank / WARP * WARP + lane;
            if (rank >= block_threads) {
                return note(describe(t) + ": lane " + std::to_string(lane) + " of the mask is not in the block");
            }
            const Thread& other = b.threads[rank];
            if (other.state != WAITS_FOR_WARP || strcmp(other.what, t.what) != 0 || other.mask != t.mask ||
                other.line != t.line || strcmp(other.file, t.file) != 0) {
                return note(describe(t) + ": lane " + std::to_string(lane) + " of the mask does not come: " +
                            describe(other));
            }
        }
    }
    for (Thread& t : b.threads) {
        for (Thread& other : b.threads) {
            if (t.state != EXITED && other.state != EXITED &&
                (t.state != other.state || t.line != other.line || strcmp(t.file, other.file) != 0)) {
                return note(describe(t) + ", but " + describe(other) + ": they wait for ever");
            }
        }
    }
    note("waits for ever");
}

// Runs the threads of a block until all have exited (true), wait for the grid (false) or something failed (false).
bool advance(Block& b) {
    block = &b;
    blockIdx = b.index;
    while (b.alive > 0) {
        bool ran = false;
        for (uint32 first = 0; first < block_threads; first += WARP) {
            for (bool again = true; again;) {
                again = false;
                for (uint32 i = first; i < first + WARP && i < block_threads; i++) {
                    thread = &b.threads[i];
                    if (thread->state != RUNS) continue;
                    again = ran = true;
                    threadIdx = index_of(i);
                    resume();
                    if (failed) return false;
                }
            }
        }
        if (ran) continue;
        // All wait: for the same?
        const Thread* at = nullptr;
        for (const Thread& t : b.threads) {
            if (t.state == EXITED) continue;
            if (at == nullptr) at = &t;
            if (t.state == WAITS_FOR_WARP || t.state != at->state || t.line != at->line || strcmp(t.file, at->file) != 0) {
                note_deadlock(b);
                return false;
            }
        }
        if (at->state == WAITS_FOR_GRID) return false;
        b.epoch++;
        for (Thread& t : b.threads) {
            if (t.state == WAITS_FOR_BLOCK) t.state = RUNS;
        }
    }
    for (uint32 i = 0; i < block_threads; i++) {
        if (!stack_is_whole(b.stacks + i * STACK)) note("thread " + name_of(index_of(i)) + ": the stack is too small");
    }
    return !failed;
}

void wait(State state, const char* file, int line) {
    thread->state = state;
    thread->file = file;
    thread->line = line;
    give_way();
}

std::vector<Block> blocks;

void run_grid() {
    const uint32 count = gridDim.x * gridDim.y * gridDim.z;
    const uint32 together = launch.cooperative ? count : 1;
    const size_t needed = size_t(together) * block_threads * STACK;
    if (needed > stacks_size) {
        if (stacks != nullptr) munmap(stacks, stacks_size);
        void* p = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = p == MAP_FAILED ? nullptr : static_cast<byte*>(p);
        stacks_size = stacks == nullptr ? 0 : needed;
        if (stacks == nullptr) {
            failed = true;
            snprintf(message, sizeof message, "kernel %s: no memory for the stacks of %u blocks", launch.name, together);
            return;
        }
    }
    if (blocks.size() < together) blocks.resize(together);
    if (!launch.cooperative) {
        for (uint32 i = 0; i < count; i++) {
            start(blocks[0], i, stacks);
            if (!advance(blocks[0])) {
                if (!failed) note("waits at grid_sync, but the launch is not cooperative");
                return;
            }
        }
        return;
    }
    for (uint32 i = 0; i < count; i++) start(blocks[i], i, stacks + i * block_threads * STACK);
    for (;;) {
        uint32 exited = 0;
        for (uint32 i = 0; i < count; i++) {
            if (blocks[i].alive == 0 || advance(blocks[i])) exited++;
            if (failed) return;
        }
        if (exited == count) return;
        if (exited > 0) {
            block = &blocks[0];
            return note("other blocks wait at grid_sync for a block that has exited");
        }
        grid_epoch++;
        for (uint32 i = 0; i < count; i++) {
            for (Thread& t : blocks[i].threads) {
                if (t.state == WAITS_FOR_GRID) t.state = RUNS;
            }
        }
    }
}

}  // namespace

// ------------------------------------------------------------------------------------- what device.cuh and kernels call

extern "C" {

const char* emulator_launch(const Launch* given) {
    launch = *given;
    launch_number++;
    grid_epoch = recent = 0;
    failed = false;
    blockDim = launch.block;
    gridDim = launch.grid;
    block_threads = blockDim.x * blockDim.y * blockDim.z;
    for (size_t i = 0; i < launch.extent_count; i++) {
        const Extent& e = launch.extents[i];
        shadows.push_back(static_cast<Shadow*>(std::calloc((e.end - e.begin) / e.unit + 1, sizeof(Shadow))));
    }
    run_grid();
    for (Shadow* s : shadows) std::free(s);
    shadows.clear();
    return failed ? message : nullptr;
}

void emulated_barrier(const char* file, int line) { wait(WAITS_FOR_BLOCK, file, line); }

void emulated_grid_barrier(uint32* arrived, const char* file, int line) {
    access(arrived, sizeof *arrived, false, true);
    if ((*arrived & 0x7FFFFFFFu) != 0) fail("the counter of grid_sync was not zero at the launch");
    wait(WAITS_FOR_GRID, file, line);
}

void emulated_warp(const char* what, uint32 mask, void* brought, void (*together)(void* const*, uint32),
                   int orders_memory, const char* file, int line) {
    const uint32 first = thread->rank / WARP * WARP;
    thread->what = what;
    thread->mask = mask;
    thread->brought = brought;
    thread->file = file;
    thread->line = line;
    if ((mask >> thread->rank % WARP & 1) == 0) {
        char text[128];
        snprintf(text, sizeof text, "calls %s with mask 0x%08x, in which its lane %u is not, ", what, mask,
                 thread->rank % WARP);
        fail(text + std::string(file) + ":" + std::to_string(line));
    }
    void* all[WARP] = {};
    uint32 epoch = 0;
    bool last = true;
    for (uint32 lane = 0; lane < WARP && last; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        if (first + lane >= block_threads) {
            last = false;
            break;
        }
        const Thread& other = block->threads[first + lane];
        if (&other != thread) {
            last = other.state == WAITS_FOR_WARP && strcmp(other.what, what) == 0 && other.mask == mask &&
                   other.line == line && strcmp(other.file, file) == 0;
        }
        all[lane] = other.brought;
        if (other.warp_epoch > epoch) epoch = other.warp_epoch;
    }
    if (!last) return wait(WAITS_FOR_WARP, file, line);
    together(all, mask);
    for (uint32 lane = 0; lane < WARP; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        Thread& other = block->threads[first + lane];
        if (orders_memory) other.warp_epoch = epoch + 1;
        other.state = RUNS;
    }
}

void* emulated_shared(const void* site, size_t bytes) {
    auto [found, is_new] = block->sites.try_emplace(site, block->top);
    if (is_new) {
        block->fixed += (bytes + 15) / 16 * 16;
        block->top = found->second + (bytes + 15) / 16 * 16 + GAP;
        if (block->fixed > STATIC_SHARED) fail("asks for more than 48 KiB of static shared memory");
        if (block->top > ARENA) fail("asks for more shared memory than there is");
        std::memset(block->allocated + found->second, 1, bytes);
    }
    return block->shared + found->second;
}

void* emulated_dynamic_shared() { return block->shared; }

void emulated_aligned(const void* p, int bytes) {
    if (uintptr_t(p) % bytes != 0) {
        fail("accesses " + std::to_string(bytes) + " bytes at address " + hexadecimal(uintptr_t(p)) +
             ", which is not a multiple of that");
    }
}

void emulated_copy(void* shared, const void* global, int bytes, int valid) {
    byte* target = static_cast<byte*>(shared);
    emulated_aligned(shared, bytes);
    emulated_aligned(global, bytes);
    if (uintptr_t(target) - uintptr_t(block->shared) >= ARENA) fail("copies asynchronously to what is not shared memory");
    if (valid < 0 || valid > bytes) fail("copies " + std::to_string(valid) + " of " + std::to_string(bytes) + " bytes");
    access(shared, bytes, true, true);
    for (int i = 0; i < valid; i++) access(static_cast<const byte*>(global) + i, 1, false, true);
    for (int i = 0; i < bytes; i++) block->shadow[target - block->shared + i].copying = thread->rank + 1;
    std::memset(target, 0xFF, bytes);
    thread->copies.push_back({target, static_cast<const byte*>(global), bytes, valid, thread->groups});
}

void emulated_copy_commit() { thread->groups++; }

void emulated_copy_wait(int pending) {
    std::vector<Copy> later;
    for (const Copy& c : thread->copies) {
        if (c.group >= thread->groups - pending) {
            later.push_back(c);
            continue;
        }
        std::memset(c.target, 0, c.bytes);
        std::memcpy(c.target, c.source, c.valid);
        for (int i = 0; i < c.bytes; i++) block->shadow[c.target - block->shared + i].copying = 0;
        access(c.target, c.bytes, true, true);
    }
    thread->copies = later;
}

#define ACCESSES(bytes)                                                                   \
    void __tsan_read##bytes(void* p) { access(p, bytes, false, true); }                   \
    void __tsan_write##bytes(void* p) { access(p, bytes, true, true); }                   \
    void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false, false); }        \
    void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true, false); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, false); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, false); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
