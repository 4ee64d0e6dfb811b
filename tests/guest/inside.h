/* SPDX-License-Identifier: GPL-2.0 */
/* What debugfs/anon_vma_lazy/mm says of a process. */
#ifndef INSIDE_H
#define INSIDE_H

#include <stdint.h>

#include "avl.h"

#define INSIDE "/sys/kernel/debug/anon_vma_lazy/mm"

/* Read about @pid (0: the reader) into a new text; NULL and errno on failure. */
static inline char *inside_read(pid_t pid)
{
	size_t len = 0, size = 1 << 16;
	char *text = malloc(size), number[16];
	ssize_t got = 0;
	int fd = open(INSIDE, O_RDWR | O_CLOEXEC);
	int err = 0;

	if (fd < 0 || !text) {
		free(text);
		return NULL;
	}
	snprintf(number, sizeof(number), "%d", pid);
	if (pid && write(fd, number, strlen(number)) < 0)
		err = errno;
	while (!err && (got = read(fd, text + len, size - len - 1)) > 0) {
		len += got;
		if (size - len < 4096) {
			char *more = realloc(text, size *= 2);

			if (!more)
				err = ENOMEM;
			else
				text = more;
		}
	}
	if (got < 0)
		err = errno;
	close(fd);
	if (err) {
		free(text);
		errno = err;
		return NULL;
	}
	text[len] = 0;
	return text;
}

/*
 * What is said of the VMA at @at: state and what follows it, up to the end of the
 * line. "nothing" if there is no VMA, "unreadable" if there is no answer.
 */
static inline const char *inside_vma(pid_t pid, const void *at)
{
	static char found[128];
	char *text = inside_read(pid), *line, *save;

	if (!text)
		return "unreadable";
	snprintf(found, sizeof(found), "nothing");
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		unsigned long start, end;
		char rest[128];

		if (sscanf(line, "vma %lx-%lx %127[^\n]", &start, &end, rest) == 3 &&
		    start <= (uintptr_t)at && (uintptr_t)at < end)
			snprintf(found, sizeof(found), "%s", rest);
	}
	free(text);
	return found;
}

/* The root of a process: its id, 0 if there is none. */
static inline unsigned int inside_root(pid_t pid)
{
	unsigned int id = 0;
	char *text = inside_read(pid);

	if (text)
		sscanf(text, "root %x", &id);
	free(text);
	return id;
}

/* Whether the answer about @pid has this line. */
static inline bool inside_has(pid_t pid, const char *line)
{
	char *text = inside_read(pid), *at;
	size_t len = strlen(line);
	bool found = false;

	for (at = text; at && (at = strstr(at, line)); at += len)
		if ((at == text || at[-1] == '\n') && at[len] == '\n')
			found = true;
	free(text);
	return found;
}

#endif /* INSIDE_H */
