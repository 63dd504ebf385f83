/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl shell: commands, one a line. Each runs in a process of its own, so that Ctrl-C ends the command and
 * not the shell, and whatever becomes of a command, the shell goes on.
 */

#include <errno.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "command.h"
#include "dispatch.h"
#include "editor.h"
#include "shell_words.h"

#define PROMPT "kvcached> "
#define HISTORY ".kvctl_history"
#define COMPLETION_TIMEOUT_MS 500
#define SIGNALLED 128

static const struct options *outer_options; /* of the shell: completion asks the same daemon */

/* ---- Completion ---- */

/* Names of commands, or of instances; both live until the next call. */
static const char *const *list_commands(void)
{
    static const char *names[64];
    size_t n = 0;

    for (const struct command *const *c = commands; *c; c++)
        names[n++] = (*c)->name;
    names[n++] = "exit";
    names[n++] = "quit";
    names[n] = NULL;
    return names;
}

/* What has other characters than names have would be put into the line, and onto the terminal, as it is. */
static bool is_name(const char *text)
{
    static const char characters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

    return *text && text[strspn(text, characters)] == '\0';
}

static const char *const *list_instances(void)
{
    static struct control_listing listing;
    static const char **names;
    _cleanup_(control_freep) struct control *control = NULL;
    static const char *const none[] = {NULL};
    const struct control_options options = {
        .socket = outer_options->socket,
        .gpu = outer_options->gpu,
        .timeout_ms = COMPLETION_TIMEOUT_MS,
    };
    size_t n = 0;

    free(names);
    names = NULL;
    control_listing_deinit(&listing);
    if (control_new(&control) < 0 || control_connect(control, &options) != 0 ||
        control_list(control, NULL, 0, &listing) != 0)
        return none;
    names = calloc(listing.n + 1, sizeof(*names));
    for (size_t i = 0; names && i < listing.n; i++)
        if (is_name(listing.instances[i]->instance))
            names[n++] = listing.instances[i]->instance;
    return names ? names : none;
}

static const char *const *candidates(char *const *words, int n_words)
{
    static const char *const none[] = {NULL};
    const struct command *command = n_words > 0 ? command_find(words[0]) : NULL;

    if (n_words == 0 || (command && command == &command_help))
        return list_commands();
    return command && strstr(command->arguments, "<ipc>") ? list_instances() : none;
}

/* ---- Running ---- */

static bool names_daemon(char *const *words, int n)
{
    for (int i = 0; i < n; i++)
        if (strncmp(words[i], "--socket", 8) == 0 || strncmp(words[i], "--gpu", 5) == 0 ||
            strcmp(words[i], "--all") == 0)
            return true;
    return false;
}

/* The shell's own options hold for each command that doesn't name a daemon itself. */
static int run_words(char **words, int n)
{
    const struct command *command = command_find(words[0]);
    char *argv[SHELL_WORDS_MAX + 8] = {(char *)"kvctl"};
    int argc = 1;

    if (command && command->options & OPTIONS_DAEMON && !names_daemon(words, n)) {
        if (outer_options->socket) {
            argv[argc++] = (char *)"--socket";
            argv[argc++] = (char *)outer_options->socket;
        }
        if (outer_options->gpu) {
            argv[argc++] = (char *)"--gpu";
            argv[argc++] = (char *)outer_options->gpu;
        }
    }
    for (int i = 0; i < n; i++)
        argv[argc++] = words[i];
    return dispatch(argc, argv);
}

static int await(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return STATUS_FAILED;
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    if (WTERMSIG(status) == SIGINT)
        putchar('\n');
    else
        command_complain(STATUS_FAILED, "The command was ended by signal %d (%s)", WTERMSIG(status),
                         strsignal(WTERMSIG(status)));
    return SIGNALLED + WTERMSIG(status);
}

/* In a child; `line` for the system's shell, or else words for ours. */
static int run_apart(const char *line, char **words, int n)
{
    int status;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid < 0)
        return command_complain(STATUS_FAILED, "Cannot start a process: %s", strerror(errno));
    if (pid > 0)
        return await(pid);
    signal(SIGINT, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    if (line) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        command_complain(STATUS_FAILED, "Cannot run /bin/sh: %s", strerror(errno));
        _exit(STATUS_FAILED);
    }
    status = run_words(words, n);
    if (fflush(stdout) != 0 || ferror(stdout))
        status = command_complain(STATUS_FAILED, "The output could not be written");
    _exit(status);
}

/* Whether the shell goes on. */
static bool run_line(char *line, int *status)
{
    const char *bang = line + strspn(line, " \t");
    char *words[SHELL_WORDS_MAX + 1];
    int n, r;

    if (*bang == '!') {
        r = run_apart(bang + 1, NULL, 0);
        *status = r ?: *status;
        return true;
    }
    r = shell_words_split(line, words, &n);
    if (r) {
        *status = command_complain(STATUS_USAGE, r == SHELL_WORDS_E_QUOTE ? "A quote is not closed"
                                                                          : "That line has too many words");
        return true;
    }
    if (n == 0)
        return true;
    if (n == 1 && (strcmp(words[0], "exit") == 0 || strcmp(words[0], "quit") == 0))
        return false;
    if (strcmp(words[0], "shell") == 0) {
        *status = command_complain(STATUS_USAGE, "This is the shell already");
        return true;
    }
    r = run_apart(NULL, words, n);
    *status = r ?: *status;
    return true;
}

/* ---- The shell ---- */

static const char *history_file(char path[static PATH_MAX])
{
    const char *home = getenv("HOME");
    const struct passwd *user = home && *home ? NULL : getpwuid(getuid());

    if (user)
        home = user->pw_dir;
    if (!home || home[0] != '/' || snprintf(path, PATH_MAX, "%s/" HISTORY, home) >= PATH_MAX)
        return NULL;
    return path;
}

static void note_interrupt(int number) {}

/* Ctrl-C is for the command that runs, or throws away the line that is being written. */
static void heed_signals(void)
{
    const struct sigaction interrupt = {.sa_handler = note_interrupt}; /* no SA_RESTART */

    sigaction(SIGINT, &interrupt, NULL);
    signal(SIGQUIT, SIG_IGN);
}

static int run(const struct invocation *invocation)
{
    _cleanup_(editor_freep) struct editor *editor = NULL;
    bool is_terminal = isatty(STDIN_FILENO), goes_on = true;
    int status = STATUS_DONE, r;
    char path[PATH_MAX];

    outer_options = invocation->options;
    heed_signals();
    if (editor_new(PROMPT, history_file(path), candidates, &editor) < 0)
        return command_complain(STATUS_FAILED, "Out of memory");
    while (goes_on) {
        _cleanup_free_ char *line = NULL;

        r = editor_read(editor, &line);
        if (r == 0)
            goes_on = run_line(line, &status);
        else if (r == EDITOR_E_INTERRUPTED && is_terminal)
            putchar('\n');
        else
            goes_on = false;
        if (r < 0)
            status = command_complain(STATUS_FAILED, "The input could not be read: %s", strerror(-r));
        else if (r == EDITOR_E_END && is_terminal)
            putchar('\n');
    }
    return is_terminal ? STATUS_DONE : status;
}

const struct command command_shell = {
    .name = "shell",
    .arguments = "",
    .summary = "read commands, one a line (also: no command at all)",
    .help =
        "Reads commands, one a line, and runs them. `help` lists them, `!command` runs one of the system's,\n"
        "`exit`, `quit` or Ctrl-D ends the shell; Ctrl-C ends the command that runs. On a terminal lines can "
        "be\n"
        "edited and completed (Tab), and are kept in ~/.kvctl_history. From a script, the exit status is "
        "that of\n"
        "the last command that failed.\n",
    .options = OPTIONS_DAEMON,
    .min_words = 0,
    .max_words = 0,
    .run = run,
};
