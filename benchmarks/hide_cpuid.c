// Hides CPU features from a process: preloaded, it answers the CPUID instruction without the bits in
// CLIPSIEVE_HIDDEN_CPUID, six hexadecimal masks: leaf 1 ECX; leaf 7 EBX, ECX and EDX; leaf 7.1 EAX and EDX.
// Linux on x86-64 processors that can make CPUID fault (arch_prctl's ARCH_SET_CPUID). Threads and children inherit it.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012, CPUID_BYTES = 2 };

static unsigned hidden[6];
static struct sigaction previous;

static long let_cpuid_pass(int pass) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, pass); }

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
    sigaction(SIGSEGV, &previous, NULL);  // a fault of the program's own: it happens again, and ends it
    return;
  }
  unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], eax, ebx, ecx, edx;
  let_cpuid_pass(1);
  __cpuid_count(leaf, part, eax, ebx, ecx, edx);
  let_cpuid_pass(0);
  if (leaf == 1) ecx &= ~hidden[0];
  if (leaf == 7 && part == 0) ebx &= ~hidden[1], ecx &= ~hidden[2], edx &= ~hidden[3];
  if (leaf == 7 && part == 1) eax &= ~hidden[4], edx &= ~hidden[5];
  registers[REG_RAX] = eax, registers[REG_RBX] = ebx, registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
  registers[REG_RIP] += CPUID_BYTES;
}

__attribute__((constructor)) static void hide(void) {
  const char *masks = getenv("CLIPSIEVE_HIDDEN_CPUID");
  if (masks == NULL) return;
  if (sscanf(masks, "%x,%x,%x,%x,%x,%x", hidden, hidden + 1, hidden + 2, hidden + 3, hidden + 4, hidden + 5) != 6) {
    fprintf(stderr, "CLIPSIEVE_HIDDEN_CPUID: six hexadecimal masks are needed, found %s\n", masks);
    exit(2);
  }
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, &previous);
  if (let_cpuid_pass(0) != 0) {
    perror("CPUID cannot be made to fault here");
    exit(3);
  }
}
