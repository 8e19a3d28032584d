// Faults. A signal in a kernel becomes a report, and the launch is abandoned. If host code touches
// device memory, a line on stderr names it, and the signal takes its usual course. Misaligned
// access is found by code that -fsanitize=alignment adds; it calls the function at the end.
#include "engine.h"

#include "fiber.h"

#include "common/fence.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace simt {

static const int caught[] = {SIGSEGV, SIGBUS, SIGFPE};
static struct sigaction before[3], before_host;
static char handler_stack[64 << 10]; // a handler cannot run on a full stack
static stack_t stack_before;

static void unblock(int signal) { // the handler is left without returning
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

static void in_kernel(int signal, siginfo_t *info, void *) {
    char whose[128];
    unblock(signal);
    if (signal == SIGFPE)
        launch_fault("an integer was divided by zero");
    if (stack_guards(info->si_addr))
        launch_fault("the thread's stack is full (local arrays, or recursion)");
    if (!arena_describe(info->si_addr, whose, sizeof whose))
        snprintf(whose, sizeof whose, "%s",
                 (uintptr_t)info->si_addr < 4096 ? "a null pointer or near one"
                                                 : "which is not device memory");
    int owner = arena_device(info->si_addr);
    if (launch_running() && owner >= 0 && owner != launch_running()->device)
        launch_fault("touched address 0x%zx, %s, of device %d; the kernel runs on device %d, and "
                     "there is no peer access",
                     (size_t)info->si_addr, whose, owner, launch_running()->device);
    launch_fault("touched address 0x%zx, %s", (size_t)info->si_addr, whose);
}

static void in_host(int signal, siginfo_t *info, void *) {
    char text[256], whose[128];
    if (arena_describe(info->si_addr, whose, sizeof whose)) {
        int n = snprintf(text, sizeof text, "simulator: host code touched address %p, %s\n",
                         info->si_addr, whose);
        if (write(2, text, (size_t)n) < 0)
            _exit(3);
    }
    sigaction(signal, &before_host, nullptr); // the access is tried again, under the old handler
}

void faults_catch() {
    stack_t handlers = {};
    struct sigaction ours = {};
    handlers.ss_sp = handler_stack, handlers.ss_size = sizeof handler_stack;
    sigaltstack(&handlers, &stack_before);
    nsa_show(handler_stack, sizeof handler_stack); // the last handler may not have returned
    ours.sa_sigaction = in_kernel;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++)
        sigaction(caught[i], &ours, &before[i]);
}

void faults_release() {
    for (int i = 0; i < 3; i++)
        sigaction(caught[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
}

void faults_watch_host() {
    static bool watching;
    if (watching) // a second arena: the handler must not take itself for the one before
        return;
    watching = true;
    struct sigaction ours = {};
    ours.sa_sigaction = in_host;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &ours, &before_host);
}

} // namespace simt

// ------------------------------------------------------------------- alignment

namespace {
struct Place { // layout as in the compilers' runtimes
    const char *file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;
    char name[1];
};
struct Mismatch {
    Place place;
    const Type *type;
    unsigned char log_alignment, access;
};
} // namespace

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(
    Mismatch *data, uintptr_t address) {
    unsigned long align = 1ul << data->log_alignment;
    const char *how = address ? "misaligned access to" : "null pointer used as";
    if (simt::launch_running())
        simt::fail("%s %s (%s:%u): address %p is not a multiple of %lu", how, data->type->name,
                   data->place.file, data->place.line, (void *)address, align);
    fprintf(stderr, "simulator: host code: %s %s (%s:%u)\n", how, data->type->name,
            data->place.file, data->place.line);
    abort();
}
