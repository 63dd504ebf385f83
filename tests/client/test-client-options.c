/* SPDX-License-Identifier: Apache-2.0 */

/* What the environment may say, and how a daemon is found and trusted. */

#include "support.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "options.h"

static struct settings resolve(struct kvc_options options)
{
    struct settings settings;

    options.size = sizeof(options);
    check_ok(settings_resolve(&options, &settings));
    return settings;
}

static void refuse(struct kvc_options options, int error, const char *word)
{
    struct settings settings;

    options.size = sizeof(options);
    check_error(settings_resolve(&options, &settings), error);
    if (!strstr(kvc_last_error(), word))
        test_fail(__FILE__, __LINE__, "\"%s\" does not name %s", kvc_last_error(), word);
}

TEST(defaults)
{
    struct settings s;
    char name[64];

    unsetenv("KVCACHED_EMULATOR_DIR");
    s = resolve((struct kvc_options){.min_reserved_pages = -1, .max_reserved_pages = -1});
    snprintf(name, sizeof(name), "kvcached_proc_%ld", (long)getpgrp());
    check_str(s.instance, name);
    check(!s.socket && !s.gpu_uuid && !s.has_gpu_index && !s.emulator_dir && !s.has_daemon_uid);
    check_eq(s.role, KVC_ROLE_ENGINE);
    check_eq(s.timeout_ns, 60 * NSEC_PER_SEC);
    check_eq(s.min_reserved_pages, 5);
    check_eq(s.max_reserved_pages, 10);
    check(s.max_reserved_bytes == UINT64_MAX);
    check_eq(s.limit_ppm, 0);
    check_eq(s.report_ns, 100 * NSEC_PER_MSEC);
}

TEST(empty_variables_say_nothing)
{
    static const char *const names[] = {
        "KVCACHED_SOCKET",
        "KVCACHED_IPC_NAME",
        "KVCACHED_IPC_TIMEOUT",
        "KVCACHED_GPU_UTILIZATION",
        "KVCACHED_MIN_RESERVED_PAGES",
        "KVCACHED_MAX_RESERVED_PAGES",
        "KVCACHED_PAGE_PREALLOC_ENABLED",
        "KVCACHED_DAEMON_UID",
        "KVCACHED_EMULATOR_DIR",
    };
    struct settings s;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        setenv(names[i], "", 1);
    s = resolve((struct kvc_options){.min_reserved_pages = -1, .max_reserved_pages = -1});
    check(!s.socket && !s.emulator_dir && !s.has_daemon_uid);
    check_eq(strncmp(s.instance, "kvcached_proc_", 14), 0);
    check_eq(s.timeout_ns, 60 * NSEC_PER_SEC);
    check_eq(s.limit_ppm, 0);
    check_eq(s.min_reserved_pages, 5);
    check_eq(s.max_reserved_pages, 10);
}

TEST(options_win)
{
    struct settings s;

    setenv("KVCACHED_SOCKET", "/environment", 1);
    setenv("KVCACHED_IPC_NAME", "environment", 1);
    setenv("KVCACHED_GPU_UTILIZATION", "0.5", 1);
    setenv("KVCACHED_MIN_RESERVED_PAGES", "7", 1);
    setenv("KVCACHED_MAX_RESERVED_PAGES", "70", 1);
    setenv("KVCACHED_DAEMON_UID", "1000", 1);
    s = resolve((struct kvc_options){.min_reserved_pages = -1, .max_reserved_pages = -1});
    check_str(s.socket, "/environment");
    check_str(s.instance, "environment");
    check_eq(s.limit_ppm, 500000);
    check_eq(s.min_reserved_pages, 7);
    check_eq(s.max_reserved_pages, 70);
    check(s.has_daemon_uid && s.daemon_uid == 1000);
    s = resolve((struct kvc_options){
        .socket = "/option",
        .instance = "option",
        .gpu_utilization = 0.25,
        .gpu = "2",
        .role = KVC_ROLE_WORKER,
        .timeout_ms = -1,
        .max_reserved_pages = 3,
        .max_reserved_bytes = 100,
    });
    check_str(s.socket, "/option");
    check_str(s.instance, "option");
    check_eq(s.limit_ppm, 250000);
    check(s.has_gpu_index && s.gpu_index == 2);
    check_eq(s.role, KVC_ROLE_WORKER);
    check(s.timeout_ns == UINT64_MAX);
    check_eq(s.min_reserved_pages, 0);
    check_eq(s.max_reserved_pages, 3);
    check_eq(s.max_reserved_bytes, 100);
}

TEST(no_refill_without_preallocation)
{
    struct kvc_options environment = {.min_reserved_pages = -1, .max_reserved_pages = -1};

    setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "no", 1);
    check_eq(resolve(environment).min_reserved_pages, 0);
    check_eq(resolve(environment).max_reserved_pages, 10);
    /* It is the operator's word, over the program's. */
    check_eq(
        resolve((struct kvc_options){.min_reserved_pages = 3, .max_reserved_pages = 7}).min_reserved_pages,
        0);
    setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "on", 1);
    check_eq(resolve(environment).min_reserved_pages, 5);
    setenv("KVCACHED_MAX_RESERVED_PAGES", "2", 1);
    check_eq(resolve(environment).min_reserved_pages, 2);
}

TEST(timeouts)
{
    struct kvc_options none = {.instance = "good"};

    check_eq(resolve(none).timeout_ns, 60 * NSEC_PER_SEC);
    setenv("KVCACHED_IPC_TIMEOUT", "1.5", 1);
    check_eq(resolve(none).timeout_ns, 1500 * NSEC_PER_MSEC);
    check_eq(resolve((struct kvc_options){.timeout_ms = 7}).timeout_ns, 7 * NSEC_PER_MSEC);
    check_eq(resolve((struct kvc_options){.timeout_ms = -1}).timeout_ns, UINT64_MAX);
    setenv("KVCACHED_IPC_TIMEOUT", "0", 1);
    check_eq(resolve(none).timeout_ns, UINT64_MAX);
    setenv("KVCACHED_IPC_TIMEOUT", "-1", 1);
    check_eq(resolve(none).timeout_ns, UINT64_MAX);
}

TEST(listeners)
{
    struct kvc_listener listener = {.size = sizeof(listener)};
    struct kvc_options options = {.instance = "good", .listener = &listener, .report_ms = 5};

    check_eq(resolve(options).report_ns, 5 * NSEC_PER_MSEC);
    listener.size = 1;
    refuse(options, KVC_E_INVALID, "kvc_listener");
}

TEST(bad_variables)
{
    static const struct {
        const char *name, *value;
    } bad[] = {
        {"KVCACHED_GPU_UTILIZATION", "0"},
        {"KVCACHED_GPU_UTILIZATION", "1.01"},
        {"KVCACHED_GPU_UTILIZATION", "95%"},
        {"KVCACHED_MIN_RESERVED_PAGES", "-1"},
        {"KVCACHED_MAX_RESERVED_PAGES", "many"},
        {"KVCACHED_MAX_RESERVED_PAGES", "99999999999"},
        {"KVCACHED_PAGE_PREALLOC_ENABLED", "maybe"},
        {"KVCACHED_IPC_TIMEOUT", "soon"},
        {"KVCACHED_DAEMON_UID", "root"},
        {"KVCACHED_DAEMON_UID", "4294967295"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        setenv(bad[i].name, bad[i].value, 1);
        refuse((struct kvc_options){.instance = "good"}, KVC_E_ENVIRONMENT, bad[i].name);
        unsetenv(bad[i].name);
    }
}

TEST(bad_name_that_is_used)
{
    static const char *const bad[] = {"a b", ".hidden", "über"};

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        setenv("KVCACHED_IPC_NAME", bad[i], 1);
        refuse((struct kvc_options){}, KVC_E_ENVIRONMENT, "KVCACHED_IPC_NAME");
        check_eq(strcmp(resolve((struct kvc_options){.instance = "good"}).instance, "good"), 0);
    }
}

TEST(bad_options)
{
    char long_name[66] = "";

    memset(long_name, 'x', sizeof(long_name) - 1);
    refuse((struct kvc_options){.instance = long_name}, KVC_E_INVALID, "instance name");
    refuse((struct kvc_options){.instance = ""}, KVC_E_INVALID, "instance name");
    refuse((struct kvc_options){.instance = "-x"}, KVC_E_INVALID, "instance name");
    refuse((struct kvc_options){.instance = "a/b"}, KVC_E_INVALID, "instance name");
    refuse((struct kvc_options){.gpu = "one"}, KVC_E_INVALID, "one");
    refuse((struct kvc_options){.gpu = "70000"}, KVC_E_INVALID, "70000");
    refuse((struct kvc_options){.role = (enum kvc_role)9}, KVC_E_INVALID, "role");
    refuse((struct kvc_options){.min_reserved_pages = -2}, KVC_E_INVALID, "reserved");
    refuse((struct kvc_options){.gpu_utilization = -0.5}, KVC_E_INVALID, "utilization");
    refuse((struct kvc_options){.gpu_utilization = 0.0 / 0.0}, KVC_E_INVALID, "utilization");
    long_name[64] = 0;
    check_eq(strlen(resolve((struct kvc_options){.instance = long_name}).instance), 64);
}

/* ---- Layouts ---- */

TEST(layouts)
{
    struct kvc_layout layout = {.size = sizeof(layout), .layers = 36, .kv_buffers = 2, .contiguous = -1};
    struct kvc_region_options options = {.size = sizeof(options), .pages = 7};

    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 1);
    check_eq(options.page_bytes, 144 * MIB);
    check_eq(options.pages, 7);
    setenv("KVCACHED_CONTIGUOUS_LAYOUT", "no", 1);
    setenv("KVCACHED_PAGE_SIZE_MB", "4", 1);
    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 72);
    check_eq(options.page_bytes, 4 * MIB);
    layout.contiguous = 1;
    layout.page_bytes = 2 * MIB;
    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 1);
    check_eq(options.page_bytes, 144 * MIB);
    setenv("KVCACHED_PAGE_SIZE_MB", "3", 1);
    check_error(kvc_layout_region(&layout, &options), KVC_E_ENVIRONMENT);
    check(strstr(kvc_last_error(), "KVCACHED_PAGE_SIZE_MB"));
    setenv("KVCACHED_PAGE_SIZE_MB", "2", 1);
    setenv("KVCACHED_CONTIGUOUS_LAYOUT", "sideways", 1);
    check_error(kvc_layout_region(&layout, &options), KVC_E_ENVIRONMENT);
    unsetenv("KVCACHED_CONTIGUOUS_LAYOUT");
    layout.layers = 0;
    check_error(kvc_layout_region(&layout, &options), KVC_E_INVALID);
    layout.size = 1;
    check_error(kvc_layout_region(&layout, &options), KVC_E_INVALID);
}

/* ---- Finding a daemon ---- */

static void open_somewhere(const char *gpu, int error)
{
    struct kvc_options options = {.size = sizeof(options), .gpu = gpu, .timeout_ms = 20000};
    struct kvc_client *client = NULL;

    check_error(kvc_open(&options, &client), error);
    kvc_close(client);
}

static void dead_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    close(fd);
}

/* A socket that nobody listens on is passed over for the next place. */
TEST(the_usual_places)
{
    struct fake *fake = fake_start(NULL);
    const char *folder = test_folder();
    char inner[64], first[96], second[96];

    snprintf(inner, sizeof(inner), "%s/kvcached", folder);
    check_eq(mkdir(inner, 0700), 0);
    snprintf(first, sizeof(first), "%s/gpu5.sock", folder);
    snprintf(second, sizeof(second), "%s/gpu5.sock", inner);
    setenv("RUNTIME_DIRECTORY", folder, 1);
    setenv("XDG_RUNTIME_DIR", folder, 1);
    open_somewhere("5", KVC_E_CONNECT);
    check(strstr(kvc_last_error(), "GPU 5"));
    dead_socket(first);
    open_somewhere("5", KVC_E_CONNECT);
    check_eq(symlink(fake_socket(fake), second), 0);
    /* It is found, and serves another GPU than the socket's name says. */
    open_somewhere("5", KVC_E_REFUSED);
    unlink(second);
    snprintf(second, sizeof(second), "%s/gpu0.sock", inner);
    check_eq(symlink(fake_socket(fake), second), 0);
    open_somewhere(NULL, 0);
    fake_stop(fake);
}

TEST(sockets_that_are_none)
{
    struct kvc_options options = {.size = sizeof(options), .socket = "/nonexistent/socket"};
    char endless[200];
    struct kvc_client *client = NULL;

    check_error(kvc_open(&options, &client), KVC_E_CONNECT);
    check(strstr(kvc_last_error(), "/nonexistent/socket"));
    options.socket = "/dev/null";
    check_error(kvc_open(&options, &client), KVC_E_CONNECT);
    memset(endless, 'x', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = 0;
    options.socket = endless;
    check_error(kvc_open(&options, &client), KVC_E_CONNECT);
    check(!client);
}

/* Whoever listens as another user is no daemon, unless the environment says so. */
TEST(strangers_are_not_trusted)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct kvc_options options = {.size = sizeof(options), .socket = address.sun_path, .timeout_ms = 50};
    struct kvc_client *client = NULL;
    int fd;

    if (geteuid() != 0)
        test_skip("only root can become somebody else");
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", test_folder());
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    check_eq(seteuid(54321), 0);
    check_eq(listen(fd, 4), 0);
    check_eq(seteuid(0), 0);
    check_error(kvc_open(&options, &client), KVC_E_CONNECT);
    check(strstr(kvc_last_error(), "54321"));
    setenv("KVCACHED_DAEMON_UID", "54321", 1);
    check_error(kvc_open(&options, &client), KVC_E_TIMEOUT);
    close(fd);
}

/* Nobody accepts, and the queue of those who wait is full. */
TEST(a_daemon_that_does_not_accept)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct kvc_options options = {.size = sizeof(options), .socket = address.sun_path, .timeout_ms = 50};
    struct kvc_client *client = NULL;
    int fd;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", test_folder());
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 0) == 0);
    for (int i = 0; i < 4; i++)
        check_error(kvc_open(&options, &client), KVC_E_TIMEOUT);
    close(fd);
}
