#compdef sysflow-collector
# Completion of sysflow-collector for zsh.

_sysflow_collector() {
	local -a commands=(
		'serve:receive frames until SIGTERM'
		'print:print frames, .sf files, or folders of either'
		'ledger:say of each run whether everything is accounted for'
		'export:write one .sf file of frames'
	)
	if (( CURRENT == 2 )); then
		_describe -t commands command commands
		_arguments '(- *)'{-h,--help}'[print a summary]' '(- *)'{-V,--version}'[print the version]'
		return
	fi
	case $words[2] in
		serve) _arguments '--config[configuration]:file:_files' '2:' '--help[print a summary]' ;;
		print)
			_arguments '--json[one JSON object a line]' '--process[only processes with this text]:text:' \
				'--since[only what goes on then or later]:time:' '--until[only what began before]:time:' \
				'*--kind[only these kinds]:kind:(PE PF FE FF NE NF KE SUM)' '--help[print a summary]' '*:path:_files'
			;;
		ledger) _arguments '--json[one JSON object a line]' '--ca[believe only signatures by its certificates]:file:_files' '--help[print a summary]' '*:path:_files' ;;
		export) _arguments '--sf[the file to write]:file:_files' '--help[print a summary]' '*:path:_files' ;;
	esac
}

_sysflow_collector "$@"
