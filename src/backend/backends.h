// What each backend folder defines. A missing backend is a folder that defines the same symbols and says so.
#pragma once
#include <memory>
#include <string>

#include "linnet/backend.h"
#include "linnet/threads.h"

namespace linnet {

std::unique_ptr<Backend> make_cpu_backend(int threads = default_threads());

std::unique_ptr<Backend> make_cuda_backend();
// Empty if a GPU can be used, else the reason why not.
std::string cuda_usable();

}  // namespace linnet
