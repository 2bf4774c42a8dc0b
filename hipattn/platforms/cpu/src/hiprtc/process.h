// Running the compiler in a private folder.
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../abi/text.h"

extern char** environ;

// A folder of its own, which goes with everything in it; without a path where it cannot be made.
struct Folder {
    Text path;

    explicit Folder(const char* prefix) {
        path.add(prefix).add("XXXXXX");
        if (!mkdtemp(path.data)) path = Text();
    }
    ~Folder() {
        if (path.size) remove_tree(path.c_str());
    }
    Text operator/(const char* name) const { return Text(path).add("/").add(name); }

    static void remove_tree(const char* path) {
        if (DIR* d = opendir(path)) {
            while (dirent* e = readdir(d))
                if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
                    remove_tree(Text(path).add("/").add(e->d_name).c_str());
            closedir(d);
        }
        remove(path);
    }
};

static bool write_file(const char* path, const char* data, size_t size) {
    for (const char* slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/'))
        mkdir(Text().add(path, slash - path).c_str(), 0700);
    FILE* f = fopen(path, "wb");
    if (!f) return false;
    bool written = fwrite(data, 1, size, f) == size;
    return !fclose(f) && written;
}

static bool read_file(const char* path, Text& into) {
    FILE* f = fopen(path, "rb");
    if (!f) return false;
    char part[65536];
    for (size_t n; (n = fread(part, 1, sizeof part, f));) into.add(part, n);
    fclose(f);
    return true;
}

// Splits a command line at blanks; quotes and backslashes protect, as in a shell.
static void split_command(const char* s, List<Text>& words) {
    while (*(s += strspn(s, " \t\n"))) {
        Text word("");
        for (char quote = 0; *s && (quote || !strchr(" \t\n", *s)); ++s) {
            if (quote ? *s == quote : *s == '\'' || *s == '"') quote = quote ? 0 : *s;
            else if (*s == '\\' && quote != '\'' && s[1]) word.add(++s, 1);
            else word.add(s, 1);
        }
        words.add(word);
    }
}

// Runs a command, its standard output and error going to files of the folder; returns its exit status, or -1 with
// the reason in `log` when it could not be run or was killed.
static int run_command(const List<Text>& command, const Folder& folder, const char* out, const char* err, Text& log) {
    Array<char*> arguments = {}, environment = {};
    for (const Text& word : command) arguments.push(const_cast<char*>(word.c_str()));
    arguments.push(nullptr);
    // ziglang keeps every object it makes in its local cache; here each is used once.
    Text cache = Text("ZIG_LOCAL_CACHE_DIR=").add(folder / "cache");
    environment.push(cache.data);
    for (char** e = environ; *e; ++e)
        if (!starts_with(*e, "ZIG_LOCAL_CACHE_DIR=")) environment.push(*e);
    environment.push(nullptr);

    Text out_path = folder / out, err_path = folder / err;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t child;
    int failed = posix_spawnp(&child, arguments.items[0], &actions, nullptr, arguments.items, environment.items);
    posix_spawn_file_actions_destroy(&actions);
    int status = 0;
    if (!failed)
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    free(arguments.items);
    free(environment.items);
    if (failed) {
        log.format("error: cannot run the compiler '%s': %s\n", command[0].c_str(), strerror(failed));
        return -1;
    }
    read_file(err_path.c_str(), log);
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    log.format("error: the compiler '%s' was ended by signal %d\n", command[0].c_str(), WTERMSIG(status));
    return -1;
}
