/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvcachedd: wires options, configuration, device and server together, and turns what went wrong into one
 * sentence and an exit status: 0 done, 1 failed, 2 wrong usage.
 */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "server.h"

#define EXIT_USAGE 2

static int serve(const struct options *options, struct config *config)
{
    char error[CONFIG_ERROR_MAX];
    const struct device_info *info;
    struct device *device;
    struct server *server;
    int r;

    r = device_open(options->gpu, options->emulate, &device, error);
    if (r < 0) {
        config_free(config);
        log_error("%s", error);
        return EXIT_FAILURE;
    }
    info = device_info(device);
    if (options_settle(options, info->index, info->uuid, config, error) < 0) {
        config_free(config);
        device_close(device);
        log_error("%s", error);
        return EXIT_FAILURE;
    }
    r = server_new(options, config, device, &server, error);
    if (r < 0) {
        log_error("%s", error);
        return EXIT_FAILURE;
    }
    r = server_run(server);
    if (r < 0)
        log_error("Cannot accept connections");
    if (!server_free(server))
        _exit(r < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    char error[OPTIONS_ERROR_MAX];
    struct options options;
    struct config *config;

    log_open();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a full disk is an answer, whichever way it is said */
    switch (options_parse(argc, argv, &options, error)) {
    case OPTIONS_E_HELP:
        fputs(options_help, stdout);
        return EXIT_SUCCESS;
    case OPTIONS_E_VERSION:
        puts("kvcachedd " KVCACHED_VERSION);
        return EXIT_SUCCESS;
    case 0:
        break;
    default:
        log_error("%s", error);
        return EXIT_USAGE;
    }
    if (options_load_config(&options, &config, error) < 0) {
        log_error("%s", error);
        return EXIT_FAILURE;
    }
    if (options.check_config) {
        config_free(config);
        return EXIT_SUCCESS;
    }
    return serve(&options, config);
}
