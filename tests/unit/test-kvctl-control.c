/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The control client against a daemon that follows a script: each step is a request that must come, and what
 * it is answered with. The scripts say what no real daemon does.
 */

#include "control.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/arith.h"
#include "test.h"
#include "wire/link.h"

#define STEPS_MAX 8

struct step {
    uint16_t expected; /* 0: says this without being asked */
    uint16_t answer;   /* 0: closes the connection; SILENCE: says nothing until the client goes */
    uint32_t request;  /* 0: that of the request */
    const ProtobufCMessage *body;
    bool late; /* not before the client waits for it */
};

#define SILENCE UINT16_MAX

struct fake {
    char folder[32], path[64];
    int listener;
    struct step steps[STEPS_MAX];
    pthread_t thread;
};

static Kvcached__Welcome welcome;
static Kvcached__Hello seen_hello;
static char seen_program[64];

/* The linker puts it in the place of the C library's: how long the client waits, and that it does. */
int __real_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);

static sem_t waiting;
static _Thread_local bool is_client;
static int client_timeout_ms;

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
    if (is_client) {
        client_timeout_ms = timeout_ms;
        sem_post(&waiting);
    }
    return __real_poll(fds, n, timeout_ms);
}

/* Waits for the next message; false when the client has gone. */
static bool receive(struct link *link, struct message *ret)
{
    struct pollfd pollfd = {.fd = link_fd(link), .events = POLLIN};
    int r;

    while ((r = link_receive(link, ret, NULL)) == LINK_E_EMPTY)
        poll(&pollfd, 1, -1);
    return r == 0;
}

static void note_hello(const struct message *message)
{
    const Kvcached__Hello *hello = (const Kvcached__Hello *)message->body;

    if (message->type != MESSAGE_HELLO)
        return;
    seen_hello = *hello;
    snprintf(seen_program, sizeof(seen_program), "%s", hello->program);
}

static bool play(struct link *link, const struct step *step)
{
    uint32_t request = step->request;
    struct message message;

    if (step->expected) {
        if (!receive(link, &message))
            return false;
        check_eq(message.type, step->expected);
        note_hello(&message);
        request = request ? request : message.request;
        message_deinit(&message);
    }
    if (step->answer == SILENCE) {
        check(!receive(link, &message));
        return false;
    }
    if (step->answer == 0)
        return false;
    while (step->late && sem_wait(&waiting) != 0)
        ;
    check_eq(link_send(link, step->answer, request, step->body, NULL), 0);
    return true;
}

static void *serve(void *data)
{
    struct fake *fake = data;
    struct link *link = NULL;
    int fd = accept(fake->listener, NULL, NULL);

    check(fd >= 0);
    check_eq(link_new(fd, false, 8, &link), 0);
    for (size_t i = 0; i < STEPS_MAX && play(link, &fake->steps[i]); i++)
        ;
    link_free(link);
    return NULL;
}

static void make_folder(struct fake *fake)
{
    strcpy(fake->folder, "/tmp/kvc-test-XXXXXX");
    check(mkdtemp(fake->folder));
    snprintf(fake->path, sizeof(fake->path), "%s/gpu0.sock", fake->folder);
}

static void start_listener(struct fake *fake, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s.ctl", fake->path);
    fake->listener = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    check_eq(bind(fake->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    check_eq(listen(fake->listener, 1), 0);
}

static void start(struct fake *fake)
{
    kvcached__welcome__init(&welcome);
    welcome.version = 1;
    welcome.total_bytes = 80 * GIB;
    make_folder(fake);
    start_listener(fake, SOCK_SEQPACKET);
    is_client = true;
    sem_init(&waiting, 0, 0);
    check_eq(pthread_create(&fake->thread, NULL, serve, fake), 0);
}

static void remove_folder(struct fake *fake)
{
    char path[96];

    snprintf(path, sizeof(path), "%s.ctl", fake->path);
    unlink(path);
    check_eq(rmdir(fake->folder), 0);
}

static void stop(struct fake *fake)
{
    pthread_join(fake->thread, NULL);
    close(fake->listener);
    remove_folder(fake);
}

static struct control *connect_expecting(const struct fake *fake, int expected)
{
    const struct control_options options = {.socket = fake->path, .timeout_ms = 200};
    struct control *control;

    check_eq(control_new(&control), 0);
    check_eq(control_connect(control, &options), expected);
    return control;
}

#define GREETING                                                                                             \
    {                                                                                                        \
        MESSAGE_HELLO, MESSAGE_WELCOME, 0, &welcome.base                                                     \
    }

TEST(greeting)
{
    struct fake fake = {.steps = {GREETING}};
    struct control *control;
    char path[96];

    start(&fake);
    control = connect_expecting(&fake, 0);
    check(control_welcome(control)->total_bytes == 80 * GIB);
    snprintf(path, sizeof(path), "%s.ctl", fake.path);
    check_str(control_path(control), path);
    control_free(control);
    stop(&fake);
    check_eq(seen_hello.min_version, 1);
    check_eq(seen_hello.max_version, 1);
    check_str(seen_program, "test-kvctl-control");
}

TEST(challenge)
{
    static uint8_t nonce[16] = "0123456789abcdef";
    Kvcached__Challenge challenge = KVCACHED__CHALLENGE__INIT;
    struct fake fake = {.steps = {{MESSAGE_HELLO, MESSAGE_CHALLENGE, 0, &challenge.base},
                                  {MESSAGE_CHALLENGE_REPLY, MESSAGE_WELCOME, 0, &welcome.base}}};

    challenge.nonce = (ProtobufCBinaryData){.data = nonce, .len = sizeof(nonce)};
    start(&fake);
    control_free(connect_expecting(&fake, 0));
    stop(&fake);
}

TEST(refused_before_the_greeting)
{
    Kvcached__Refused refused = KVCACHED__REFUSED__INIT;
    struct fake fake = {.steps = {{0, MESSAGE_REFUSED, 0, &refused.base}}};
    struct control *control;

    refused.error = KVCACHED__ERROR__ERROR_IDENTITY;
    refused.reason = (char *)"You are in another pid namespace.";
    start(&fake);
    control = connect_expecting(&fake, CONTROL_E_REFUSED);
    check_eq(control_refusal(control), KVCACHED__ERROR__ERROR_IDENTITY);
    check_str(control_reason(control), "You are in another pid namespace.");
    control_free(control);
    stop(&fake);
}

TEST(silence)
{
    struct fake fake = {.steps = {{MESSAGE_HELLO, SILENCE}}};
    struct control *control;
    char reason[160];

    start(&fake);
    control = connect_expecting(&fake, CONTROL_E_SILENT);
    snprintf(reason, sizeof(reason), "The daemon at %s.ctl has not answered for 0.2 s", fake.path);
    check_str(control_reason(control), reason);
    control_free(control);
    stop(&fake);
}

TEST(waiting_for_events_has_no_end)
{
    Kvcached__EventsReply reply = KVCACHED__EVENTS_REPLY__INIT;
    struct fake fake = {.steps = {{MESSAGE_HELLO, MESSAGE_WELCOME, 0, &welcome.base, .late = true},
                                  {MESSAGE_EVENTS, MESSAGE_EVENTS_REPLY, 0, &reply.base, .late = true},
                                  {MESSAGE_INFO, SILENCE}}};
    struct control *control;
    struct message message;

    start(&fake);
    welcome.features = KVCACHED__FEATURE__FEATURE_OPERATIONS;
    control = connect_expecting(&fake, 0);
    check(client_timeout_ms >= 0 && client_timeout_ms <= 200);
    while (sem_trywait(&waiting) == 0)
        ;
    check_eq(control_events(control, 7, true, &message), 0);
    check_eq(client_timeout_ms, -1);
    message_deinit(&message);
    check_eq(control_info(control, NULL, &message), CONTROL_E_SILENT); /* nor is everything waited for so */
    control_free(control);
    stop(&fake);
}

/* The two halves: the first one waits for nothing, the second one says that it is too early. */
TEST(without_waiting)
{
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT, *infos[] = {&info};
    Kvcached__InfoReply told = KVCACHED__INFO_REPLY__INIT;
    Kvcached__ListReply first = KVCACHED__LIST_REPLY__INIT, second = KVCACHED__LIST_REPLY__INIT;
    struct fake fake = {.steps = {{MESSAGE_HELLO, MESSAGE_WELCOME, 0, &welcome.base, .late = true},
                                  {MESSAGE_INFO, MESSAGE_INFO_REPLY, 0, &told.base, .late = true},
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &first.base, .late = true},
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &second.base, .late = true},
                                  {MESSAGE_INFO, SILENCE}}};
    const struct control_options options = {.socket = fake.path, .timeout_ms = 200};
    struct control_listing listing = {0};
    struct control *control;
    struct message message;
    struct pollfd pollfd;

    first.next = 1;
    first.n_instances = second.n_instances = 1;
    first.instances = second.instances = infos;
    start(&fake);
    check_eq(control_new(&control), 0);
    check_eq(control_connect_begin(control, &options), 0);
    check_eq(control_connect_end(control), CONTROL_E_PENDING);
    check_eq(control_connect_await(control), 0);
    check_eq(control_info_begin(control, NULL), 0);
    check_eq(control_info_end(control, &message), CONTROL_E_PENDING);
    pollfd = (struct pollfd){.fd = control_fd(control), .events = control_poll_events(control)};
    check_eq(pollfd.events, POLLIN);
    check_eq(poll(&pollfd, 1, 10000), 1);
    check_eq(control_info_end(control, &message), 0);
    message_deinit(&message);
    check_eq(control_list_begin(control, NULL, 0), 0);
    check_eq(control_list_end(control, NULL, 0, &listing), CONTROL_E_PENDING);
    check_eq(poll(&pollfd, 1, 10000), 1);
    check_eq(control_list_end(control, NULL, 0, &listing), CONTROL_E_PENDING); /* the first page */
    check_eq(poll(&pollfd, 1, 10000), 1);
    check_eq(control_list_end(control, NULL, 0, &listing), 0);
    check_eq(listing.n, 2);
    control_listing_deinit(&listing);
    check_eq(control_info_begin(control, NULL), 0);
    check_eq(poll(&pollfd, 1, control_patience_ms(control) + 1), 0);
    check_eq(control_patience_ms(control), 0);
    check_eq(control_info_end(control, &message), CONTROL_E_SILENT);
    check(strstr(control_reason(control), "has not answered for 0.2 s"));
    control_free(control);
    stop(&fake);
}

TEST(hanging_up)
{
    struct fake fake = {.steps = {GREETING, {MESSAGE_INFO, 0}}};
    struct control *control;
    struct message reply;

    start(&fake);
    control = connect_expecting(&fake, 0);
    check_eq(control_info(control, NULL, &reply), CONTROL_E_FAILED);
    check_eq(control_info(control, NULL, &reply), CONTROL_E_FAILED);
    check(strstr(control_reason(control), "closed the connection"));
    control_free(control);
    stop(&fake);
}

TEST(wrong_answers)
{
    Kvcached__Returned returned = KVCACHED__RETURNED__INIT;
    Kvcached__DeleteReply deleted = KVCACHED__DELETE_REPLY__INIT;
    struct fake fake = {.steps = {GREETING,
                                  {MESSAGE_DELETE, MESSAGE_RETURNED, 0, &returned.base},
                                  {MESSAGE_DELETE, MESSAGE_DELETE_REPLY, 99, &deleted.base}}};
    struct control *control;
    struct message reply;

    start(&fake);
    control = connect_expecting(&fake, 0);
    check_eq(control_delete(control, "a", false, &reply), CONTROL_E_FAILED);
    check_str(control_reason(control), "The daemon answered Returned where DeleteReply was due");
    check_eq(control_delete(control, "a", false, &reply), CONTROL_E_FAILED);
    check_str(control_reason(control), "The daemon answered something that was not asked");
    control_free(control);
    stop(&fake);
}

TEST(pages)
{
    Kvcached__InstanceInfo infos[3] = {KVCACHED__INSTANCE_INFO__INIT, KVCACHED__INSTANCE_INFO__INIT,
                                       KVCACHED__INSTANCE_INFO__INIT};
    Kvcached__InstanceInfo *first[] = {&infos[0], &infos[1]}, *last[] = {&infos[2]};
    Kvcached__ListReply replies[] = {KVCACHED__LIST_REPLY__INIT, KVCACHED__LIST_REPLY__INIT,
                                     KVCACHED__LIST_REPLY__INIT};
    struct fake fake = {.steps = {GREETING,
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &replies[0].base},
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &replies[1].base},
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &replies[2].base}}};
    struct control_listing listing;
    struct control *control;

    infos[0].instance = (char *)"a";
    infos[1].instance = (char *)"b";
    infos[2].instance = (char *)"c";
    replies[0].n_instances = 2;
    replies[0].instances = first;
    replies[0].next = 2;
    replies[1].next = 7;
    replies[2].n_instances = 1;
    replies[2].instances = last;
    start(&fake);
    control = connect_expecting(&fake, 0);
    check_eq(control_list(control, NULL, 0, &listing), 0);
    check_eq(listing.n, 3);
    check_eq(listing.n_pages, 3);
    for (size_t i = 0; i < 3; i++)
        check_str(listing.instances[i]->instance, infos[i].instance);
    control_listing_deinit(&listing);
    control_free(control);
    stop(&fake);
}

TEST(a_later_page_is_refused)
{
    Kvcached__Refused refused = KVCACHED__REFUSED__INIT;
    Kvcached__ListReply reply = KVCACHED__LIST_REPLY__INIT;
    struct fake fake = {.steps = {GREETING,
                                  {MESSAGE_LIST, MESSAGE_LIST_REPLY, 0, &reply.base},
                                  {MESSAGE_LIST, MESSAGE_REFUSED, 0, &refused.base}}};
    struct control_listing listing = {.n = 42};
    struct control *control;

    reply.next = 1;
    start(&fake);
    control = connect_expecting(&fake, 0);
    check_eq(control_list(control, NULL, 0, &listing), CONTROL_E_REFUSED);
    check_eq(listing.n, 42);
    check_str(control_reason(control), "The daemon refused without saying why");
    control_free(control);
    stop(&fake);
}

TEST(requests_too_long)
{
    struct fake fake = {.steps = {GREETING}};
    struct control *control;
    struct message reply;
    char *name = malloc(FRAME_SIZE_MAX + 1);

    memset(name, 'a', FRAME_SIZE_MAX);
    name[FRAME_SIZE_MAX] = '\0';
    start(&fake);
    control = connect_expecting(&fake, 0);
    check_eq(control_info(control, name, &reply), CONTROL_E_FAILED);
    check_str(control_reason(control), "That is more than fits into one request");
    control_free(control);
    stop(&fake);
    free(name);
}

TEST(nobody_there)
{
    struct fake fake = {0};
    struct control *control;

    make_folder(&fake);
    control_free(connect_expecting(&fake, CONTROL_E_NO_DAEMON));
    start_listener(&fake, SOCK_SEQPACKET);
    close(fake.listener); /* leaves a socket that nobody listens on */
    control = connect_expecting(&fake, CONTROL_E_NO_DAEMON);
    check(strstr(control_reason(control), "No daemon listens at"));
    control_free(control);
    remove_folder(&fake);
}

TEST(not_a_daemons_socket)
{
    struct fake fake = {0};
    struct control *control;

    make_folder(&fake);
    start_listener(&fake, SOCK_STREAM);
    control = connect_expecting(&fake, CONTROL_E_NO_DAEMON);
    check(strstr(control_reason(control), "is not the socket of a daemon"));
    control_free(control);
    close(fake.listener);
    remove_folder(&fake);
}

TEST(path_too_long)
{
    struct control_options options = {0};
    struct control *control;
    char path[120];

    memset(path, 'a', sizeof(path));
    path[104] = '\0'; /* with ".ctl", one too many */
    options.socket = path;
    check_eq(control_new(&control), 0);
    check_eq(control_connect(control, &options), CONTROL_E_NO_DAEMON);
    check(strstr(control_reason(control), "longer than"));
    path[103] = '\0';
    check_eq(control_connect(control, &options), CONTROL_E_NO_DAEMON);
    check(strstr(control_reason(control), "No daemon listens"));
    control_free(control);
}

/* The client hangs up without having said a word. */
TEST(strangers_are_told_nothing)
{
    struct fake fake = {0};
    struct control *control;
    struct pollfd pollfd;
    char byte;
    int fd, status;
    pid_t pid;

    if (geteuid() != 0)
        test_skip("needs root to listen as somebody else");
    make_folder(&fake);
    chmod(fake.folder, 0777);
    check_eq(seteuid(65534), 0);
    start_listener(&fake, SOCK_SEQPACKET);
    check_eq(seteuid(0), 0);
    pid = fork();
    if (pid == 0) {
        control = connect_expecting(&fake, CONTROL_E_NO_DAEMON);
        check(strstr(control_reason(control), "belongs to user 65534"));
        control_free(control);
        _exit(0);
    }
    pollfd = (struct pollfd){.fd = fake.listener, .events = POLLIN};
    check_eq(poll(&pollfd, 1, 10000), 1);
    fd = accept(fake.listener, NULL, NULL);
    check(fd >= 0);
    check_eq(recv(fd, &byte, 1, 0), 0);
    close(fd);
    check_eq(waitpid(pid, &status, 0), pid);
    check_eq(status, 0);
    close(fake.listener);
    remove_folder(&fake);
}

TEST(the_environment_finds_the_daemon)
{
    struct fake fake = {.steps = {GREETING}};
    const struct control_options gpu1 = {.gpu = "1"}, none = {0};
    struct control *control;

    start(&fake);
    setenv("RUNTIME_DIRECTORY", "/nowhere", 1);
    setenv("KVCACHED_SOCKET", "/nowhere/gpu0.sock", 1);
    check_eq(control_new(&control), 0);
    check_eq(control_connect(control, &none), CONTROL_E_NO_DAEMON);
    check_str(control_reason(control), "No daemon listens at /nowhere/gpu0.sock.ctl");
    check_eq(control_connect(control, &gpu1), CONTROL_E_NO_DAEMON);
    check(strstr(control_reason(control), "No daemon for GPU 1 is running"));
    setenv("RUNTIME_DIRECTORY", fake.folder, 1);
    unsetenv("KVCACHED_SOCKET");
    check_eq(control_connect(control, &none), 0);
    control_free(control);
    stop(&fake);
}

TEST(names_of_gpus)
{
    static const char *const good[] = {"0", "12", "GPU-8a6e0b7c-0000-1111-2222-333344445555", "MIG-8A"};
    static const char *const bad[] = {"", "-1", "1a", "GPU-", "GPU-x", "../0", "gpu0"};

    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        check(control_names_gpu(good[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        check(!control_names_gpu(bad[i]));
}

TEST(a_uuid_finds_the_daemon)
{
    struct fake fake = {.steps = {GREETING}};
    const struct control_options options = {.gpu = "GPU-12"};
    struct control *control;
    char link_path[64];

    start(&fake);
    snprintf(link_path, sizeof(link_path), "%s/GPU-12.sock.ctl", fake.folder);
    check_eq(symlink("gpu0.sock.ctl", link_path), 0);
    setenv("RUNTIME_DIRECTORY", fake.folder, 1);
    check_eq(control_new(&control), 0);
    check_eq(control_connect(control, &options), 0);
    control_free(control);
    unlink(link_path);
    stop(&fake);
}
