# Completion of sysflow-collector for fish.
set -l commands serve print ledger export

complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -f
complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -a serve -d 'Receive frames until SIGTERM'
complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -a print -d 'Print frames, .sf files, or folders'
complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -a ledger -d 'Say whether everything is accounted for'
complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -a export -d 'Write one .sf file of frames'
complete -c sysflow-collector -n "not __fish_seen_subcommand_from $commands" -s V -l version -d 'Print the version'
complete -c sysflow-collector -s h -l help -d 'Print a summary'
complete -c sysflow-collector -n '__fish_seen_subcommand_from serve' -l config -r -F -d 'Configuration'
complete -c sysflow-collector -n '__fish_seen_subcommand_from print ledger' -l json -d 'One JSON object a line'
complete -c sysflow-collector -n '__fish_seen_subcommand_from ledger' -l ca -r -F -d 'Believe only signatures by its certificates'
complete -c sysflow-collector -n '__fish_seen_subcommand_from print' -l process -x -d 'Only processes with this text'
complete -c sysflow-collector -n '__fish_seen_subcommand_from print' -l since -x -d 'Only what goes on then or later'
complete -c sysflow-collector -n '__fish_seen_subcommand_from print' -l until -x -d 'Only what began before'
complete -c sysflow-collector -n '__fish_seen_subcommand_from print' -l kind -x -a 'PE PF FE FF NE NF KE SUM' -d 'Only these kinds'
complete -c sysflow-collector -n '__fish_seen_subcommand_from export' -l sf -r -F -d 'The file to write'
