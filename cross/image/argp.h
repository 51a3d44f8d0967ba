/* SPDX-License-Identifier: Apache-2.0 */
/*
 * musl has no <argp.h>. This is as much of it as elfutils' support library names when it is
 * compiled; nothing of that ends in libelf.a or in the agent.
 */
#ifndef SYSFLOW_ARGP_H
#define SYSFLOW_ARGP_H

#include <errno.h>
#include <stdio.h>

#define ARGP_ERR_UNKNOWN E2BIG
#define ARGP_HELP_SEE 4
#define OPTION_ARG_OPTIONAL 1
#define OPTION_HIDDEN 2

typedef int error_t;

struct argp_state {
	const void *root_argp;
	int argc;
	char **argv;
	void *input;
	char *name;
};

struct argp_option {
	const char *name;
	int key;
	const char *arg;
	int flags;
	const char *doc;
	int group;
};

struct argp {
	const struct argp_option *options;
	error_t (*parser)(int key, char *arg, struct argp_state *state);
	const char *args_doc, *doc;
	const void *children;
	char *(*help_filter)(int key, const char *text, void *input);
	const char *argp_domain;
};

void argp_help(const struct argp *argp, FILE *stream, unsigned int flags, char *name);

#endif
