/* launch.cuh — how kernels are launched: at once, or as part of a decode step that goes to the
 * device as a whole (launch.cu, step.cu).
 *
 *   PYR_LAUNCH(kernel, grid, block, shared, cuda, arguments…) kernel in parentheses if it is a
 *   template's; cuda: pyr_cuda *
 *
 * What became of it is told by cuda_launched. Kernels with dynamic shared memory are allowed all
 * that the device has, as 48 KiB hold the static part, too: whether both fit is nothing that a
 * launcher should know. */
#ifndef PYR_CUDA_LAUNCH_CUH
#define PYR_CUDA_LAUNCH_CUH

#include "device.cuh"

#include <cstdint>
#include <tuple>
#include <utility>

struct pyr_cuda;

/* A kernel without its type. Arguments are by value, and copied byte by byte. */
struct cuda_kernel {
  const void *function;
  const char *name;
  int count;
  const uint16_t *sizes;                                             /* [count] of its arguments */
  void (*run)(const void *function, void *const *arguments);         /* of the emulator: calls it */
};

void cuda_launch(pyr_cuda *cuda, const cuda_kernel &kernel, dim3 grid, unsigned block,
                 size_t shared, void **arguments);

/* What is known of a kernel by its parameters' types: their sizes, and how the emulator calls it.
 */
template <typename... P> struct cuda_signature {
  static constexpr uint16_t sizes[sizeof...(P)] = { sizeof(P)... };
#ifdef PYR_EMULATED
  template <size_t... I> static void call(const void *function, void *const *arguments,
                                          std::index_sequence<I...>) {
    auto kernel = reinterpret_cast<void (*)(P...)>(const_cast<void *>(function));
    kernel(*static_cast<P *>(arguments[I])...);
  }
  static void run(const void *function, void *const *arguments) { call(function, arguments,
      std::index_sequence_for<P...>()); }
#else
  static constexpr void (*run)(const void *, void *const *) = nullptr;
#endif
};
template <typename... P> constexpr uint16_t cuda_signature<P...>::sizes[sizeof...(P)];

/* Arguments become what the parameters are (an int of an int64_t is widened here), and are then
 * only bytes at addresses: `values` lives until cuda_launch has copied or launched them. */
template <typename... P, typename... A>
static inline void cuda_launch_kernel(pyr_cuda *cuda, const char *name, void (*kernel)(P...),
                                      dim3 grid, unsigned block, size_t shared, A... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
  std::tuple<P...> values(static_cast<P>(arguments)...);
  typedef cuda_signature<P...> signature;
  cuda_kernel it = { reinterpret_cast<const void *>(kernel), name, static_cast<int>(sizeof...(P)),
                     signature::sizes, signature::run };
  std::apply([&](P &...each) {
    void *at[] = { const_cast<void *>(static_cast<const void *>(&each))... };
    cuda_launch(cuda, it, grid, block, shared, at);
  }, values);
}

#define PYR_LAUNCH(kernel, grid, block, shared, cuda, ...) \
  cuda_launch_kernel(cuda, #kernel, kernel, grid, block, shared, __VA_ARGS__)

#endif
