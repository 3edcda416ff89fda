// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vggload/core/error.hpp>
#include <vggload/io/atomic_output_file.hpp>
#include <vggload/io/file_mapping.hpp>
#include <vggload/io/input_file.hpp>
#include <vggload/io/mapped_file.hpp>

#include "../support/message_of.hpp"
#include "../support/temporary_folder.hpp"

using namespace vggload;
using test::message_of;

namespace {

std::atomic<bool> refuse_file_mappings = false;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

}  // namespace

// Stands before the C library's mmap in this program: a file system that cannot map answers like
// this.
extern "C" void* mmap(void* address, std::size_t size, int protection, int flags, int file,
                      off_t offset) noexcept {
  if (refuse_file_mappings && file >= 0) {
    errno = ENODEV;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(
      ::syscall(SYS_mmap, address, size, protection, flags, file, offset));
}

TEST_CASE("a file is read at any place, and nowhere outside") {
  const test::temporary_folder folder;
  const input_file file(folder.write("f", "0123456789"));
  CHECK(file.size() == 10);
  std::array<std::byte, 4> part;
  file.read_at(6, part);
  CHECK(text_of(part) == "6789");
  CHECK(message_of<io_error>([&] { file.read_at(7, part); }) ==
        file.path() +
            ": the file ends at byte 10 but 4 bytes from offset 7 were to be read (it had 10 "
            "bytes when opened)");
  CHECK_THROWS_AS(file.read_at(UINT64_MAX - 1, part), io_error);
}

TEST_CASE("what is no regular file is refused, and a pipe does not block") {
  const test::temporary_folder folder;
  CHECK(message_of<io_error>([&] {
          input_file(folder.path().string());
        }).find("not a regular file") != std::string::npos);
  const std::string pipe = folder.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(message_of<io_error>([&] { input_file{pipe}; }) == pipe + ": not a regular file");
  try {
    input_file{folder.file("none")};
    FAIL("opened");
  } catch (const io_error& e) {
    CHECK(e.code() == std::errc::no_such_file_or_directory);
    CHECK(std::string(e.what()) ==
          folder.file("none") + ": cannot open: No such file or directory");
  }
}

TEST_CASE("a file that shrinks while it is read is an error and no signal") {
  const test::temporary_folder folder;
  const std::string path = folder.write("f", std::string(100'000, 'x'));
  const input_file file(path);
  REQUIRE(::truncate(path.c_str(), 50'000) == 0);
  std::vector<std::byte> all(100'000);
  CHECK(message_of<io_error>([&] { file.read_at(0, all); }) ==
        path +
            ": the file ends at byte 50000 but 100000 bytes from offset 0 were to be read (it had "
            "100000 bytes when opened)");
  // It names the end, and not where the read began.
  CHECK(message_of<io_error>([&] { file.read_at(60'000, std::span(all).first(10)); }) ==
        path +
            ": the file ends at byte 50000 but 10 bytes from offset 60000 were to be read (it "
            "had 100000 bytes when opened)");
}

TEST_CASE("files and mappings move and close what they own") {
  const test::temporary_folder folder;
  const std::string path = folder.write("f", "abc");
  const std::size_t before = open_descriptors();
  {
    input_file a(path);
    input_file b(std::move(a));
    input_file c(folder.write("g", "defg"));
    c = std::move(b);
    CHECK(open_descriptors() == before + 1);
    file_mapping m(c);
    file_mapping n(std::move(m));
    CHECK_FALSE(m);  // NOLINT(bugprone-use-after-move): moved-from is empty, by contract
    m = std::move(n);
    CHECK(text_of(m.bytes()) == "abc");
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("a mapped file is looked at in place") {
  const test::temporary_folder folder;
  const mapped_file file{input_file(folder.write("f", "0123456789"))};
  const auto part = file.view(2, 3);
  REQUIRE(part);
  CHECK(text_of(*part) == "234");
  CHECK(file.view(2, 3)->data() == part->data());
  CHECK_FALSE(file.view(8, 3));
  CHECK_FALSE(file.view(3, UINT64_MAX));
  CHECK(file.view(10, 0)->empty());
}

TEST_CASE("a file is not mapped before somebody looks") {
  const test::temporary_folder folder;
  const mapped_file file{input_file(folder.write("f", "0123456789"))};
  const auto is_mapped = [&] {
    return test::read_file("/proc/self/maps").find(file.path()) != std::string::npos;
  };
  std::array<std::byte, 4> part;
  file.read_at(0, part);
  CHECK_FALSE(is_mapped());
  CHECK(file.view(0, 1));
  CHECK(is_mapped());
}

TEST_CASE("what was mapped is unmapped with its last owner") {
  const test::temporary_folder folder;
  const std::string path = folder.write("f", "0123456789");
  const auto times_mapped = [&] {
    const std::string maps = test::read_file("/proc/self/maps");
    std::size_t count = 0;
    for (auto at = maps.find(path); at != std::string::npos; at = maps.find(path, at + 1)) ++count;
    return count;
  };
  {
    const input_file file(path);
    file_mapping a(file);
    file_mapping b(file);
    CHECK(times_mapped() == 2);
    a = std::move(b);
    CHECK(times_mapped() == 1);
    const file_mapping c(std::move(a));
    CHECK(times_mapped() == 1);
  }
  CHECK(times_mapped() == 0);
}

TEST_CASE("where the file system refuses mmap there is no view, and reads work") {
  const test::temporary_folder folder;
  const mapped_file file{input_file(folder.write("f", "0123456789"))};
  refuse_file_mappings = true;
  CHECK_FALSE(file.view(0, 4));
  refuse_file_mappings = false;
  CHECK_FALSE(file.view(0, 4));  // not tried again for every tensor
  std::array<std::byte, 4> part;
  file.read_at(0, part);
  CHECK(text_of(part) == "0123");
}

TEST_CASE("an empty file cannot be mapped and is no error") {
  const test::temporary_folder folder;
  const mapped_file file{input_file(folder.write("f", ""))};
  CHECK(file.size() == 0);
  CHECK_FALSE(file.view(0, 0));
}

TEST_CASE("an output file appears with commit, and as a whole") {
  const test::temporary_folder folder;
  const std::string path = folder.write("out", "old");
  {
    atomic_output_file file(path, 6);
    const std::string_view text = "abcdef";
    file.write_at(3, std::as_bytes(std::span(text.substr(3))));
    file.write_at(0, std::as_bytes(std::span(text.substr(0, 3))));
    CHECK(test::read_file(path) == "old");
    // Where the file system can have files without a name, nothing is left of it if the process is killed now.
    const int nameless = ::open(folder.path().c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
    CHECK(folder.count() == (nameless < 0 ? 2 : 1));
    if (nameless >= 0) ::close(nameless);
    file.commit();
  }
  CHECK(test::read_file(path) == "abcdef");
  CHECK(folder.count() == 1);
}

TEST_CASE("a process that writes several times under one name leaves each alone") {
  const test::temporary_folder folder;
  const std::string path = folder.file("out");
  const std::string taken =
      folder.write("out.partial-" + std::to_string(::getpid()) + "-0", "somebody else's");
  atomic_output_file first(path, 1);
  atomic_output_file second(path, 1);
  first.write_at(0, std::as_bytes(std::span(std::string_view("1"))));
  second.write_at(0, std::as_bytes(std::span(std::string_view("2"))));
  second.commit();
  CHECK(test::read_file(path) == "2");
  first.commit();
  CHECK(test::read_file(path) == "1");
  CHECK(test::read_file(taken) == "somebody else's");
  CHECK(folder.count() == 2);
}

TEST_CASE("without commit nothing stays and nothing is replaced") {
  const test::temporary_folder folder;
  const std::string path = folder.write("out", "old");
  { const atomic_output_file file(path, 1000); }
  CHECK(test::read_file(path) == "old");
  CHECK(folder.count() == 1);
}

TEST_CASE("an output file that is committed lazily replaces as well, and leaves nothing behind") {
  const test::temporary_folder folder;
  const std::string path = folder.file("out");
  for (const std::string_view text : {"first", "second", "3"}) {
    atomic_output_file file(path, 0);
    file.write_at(0, std::as_bytes(std::span(text)));
    file.commit_lazily();
    CHECK(test::read_file(path) == text);
    CHECK(folder.count() == 1);
  }
  // Who has the old file open goes on reading it.
  std::ifstream old(path);
  atomic_output_file file(path, 0);
  file.write_at(0, std::as_bytes(std::span(std::string_view("new"))));
  file.commit_lazily();
  CHECK(std::string(std::istreambuf_iterator<char>(old), {}) == "3");
  CHECK(test::read_file(path) == "new");
  CHECK(folder.count() == 1);
  // Where somebody made a folder of the name meanwhile, that stays.
  atomic_output_file late(folder.file("late"), 0);
  std::filesystem::create_directory(folder.file("late"));
  CHECK_THROWS_AS(late.commit_lazily(), io_error);
  CHECK(std::filesystem::is_directory(folder.file("late")));
}

TEST_CASE("an output file has the permissions that the user's umask gives") {
  const test::temporary_folder folder;
  const mode_t before = ::umask(0027);
  atomic_output_file file(folder.file("out"), 1);
  ::umask(before);
  file.commit();
  struct ::stat status {};
  REQUIRE(::stat(folder.file("out").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777U) == 0640);
}

TEST_CASE("a file that is replaced keeps its permissions") {
  const test::temporary_folder folder;
  const std::string path = folder.write("out", "old");
  REQUIRE(::chmod(path.c_str(), 0604) == 0);
  atomic_output_file file(path, 1);
  file.commit();
  struct ::stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777U) == 0604);
}

TEST_CASE("where the name is a link, what it leads to is replaced, and the link stays") {
  const test::temporary_folder folder;
  const std::string target = folder.write("elsewhere/target", "old");
  const std::string link = folder.file("link");
  std::filesystem::create_symlink("elsewhere/target", link);
  atomic_output_file file(link, 3);
  file.write_at(0, std::as_bytes(std::span(std::string_view("new"))));
  CHECK(folder.count() == 2);  // the temporary file stands beside the target
  CHECK(test::read_file(target) == "old");
  file.commit();
  CHECK(std::filesystem::is_symlink(link));
  CHECK(test::read_file(target) == "new");
}

TEST_CASE("an output name that is empty, a folder, a device or in no folder is refused") {
  const test::temporary_folder folder;
  CHECK(message_of<io_error>([&] {
          atomic_output_file(folder.path().string(), 1);
        }).find("not a regular file") != std::string::npos);
  CHECK(message_of<io_error>([] { atomic_output_file("/dev/null", 1); }) ==
        "/dev/null: not a regular file");
  CHECK(message_of<io_error>([] { atomic_output_file("", 1); }) == "'': not the name of a file");
  CHECK(message_of<io_error>([&] { atomic_output_file(folder.file("no/out"), 1); }) ==
        folder.file("no/out") + ": cannot create: No such file or directory");
  CHECK(folder.count() == 0);
}

TEST_CASE("a disk that is too small shows before anything is written, and leaves nothing") {
  const test::temporary_folder folder;
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  struct ::rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const struct ::rlimit small { 1000, before.rlim_max };
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string message =
      message_of<io_error>([&] { atomic_output_file(folder.file("out"), 100'000); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  CHECK(message == folder.file("out") + ": cannot reserve 100000 bytes: File too large");
  CHECK(folder.count() == 0);
}
